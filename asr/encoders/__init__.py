"""Features → hidden vectors."""

from asr.encoders.conv_blstm import ConvBlstm
from asr.encoders.recurrent import Blstm, Gru

__all__ = ["Blstm", "ConvBlstm", "Gru"]
