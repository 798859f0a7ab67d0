"""Features → hidden vectors."""

from asr.encoders.recurrent import Blstm, Gru

__all__ = ["Blstm", "Gru"]
