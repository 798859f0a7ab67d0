"""A corpus on disk → a manifest for each of its splits, and a report of what was kept and dropped."""

from asr.corpora.aishell import Aishell
from asr.corpora.an4 import An4
from asr.corpora.base import Corpus, Report, Tally, check_out, write_corpus
from asr.corpora.check import Dropped
from asr.corpora.commonvoice import CommonVoice
from asr.corpora.folder import Folder
from asr.corpora.joint import Joint
from asr.corpora.kaldi import Kaldi
from asr.corpora.lhotse import Lhotse
from asr.corpora.librispeech import LibriSpeech
from asr.corpora.table import Table

__all__ = [
    "Aishell", "An4", "CommonVoice", "Corpus", "Dropped", "Folder", "Joint", "Kaldi", "Lhotse", "LibriSpeech", "Report",
    "Table", "Tally", "check_out", "write_corpus",
]  # fmt: skip
