"""Error counts and reports: what a recognizer got wrong, and how sure that number is."""

from asr.evaluation.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_difference
from asr.evaluation.counts import ErrorCounts, count_characters, count_words
from asr.evaluation.files import check_folder, read_results, write_results
from asr.evaluation.report import Evaluation, Scores, print_evaluation, summarize
from asr.evaluation.result import Result, make_results

__all__ = [
    "ErrorCounts",
    "Evaluation",
    "Interval",
    "PairedDifference",
    "Result",
    "Scores",
    "bootstrap_interval",
    "check_folder",
    "count_characters",
    "count_words",
    "make_results",
    "paired_difference",
    "print_evaluation",
    "read_results",
    "summarize",
    "write_results",
]
