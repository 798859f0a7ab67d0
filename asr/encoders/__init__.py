"""Features → hidden vectors."""

from asr.encoders.conformer import Conformer
from asr.encoders.conv_blstm import ConvBlstm
from asr.encoders.crdnn import Crdnn
from asr.encoders.lstm import Lstm
from asr.encoders.pyramid import PyramidBlstm
from asr.encoders.recurrent import Blstm, Gru

__all__ = ["Blstm", "Conformer", "ConvBlstm", "Crdnn", "Gru", "Lstm", "PyramidBlstm"]
