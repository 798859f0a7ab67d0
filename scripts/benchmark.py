"""Measure speed and accuracy: python scripts/benchmark.py training|transcription|decoding|folds|word_times"""

from asr.cli import run

if __name__ == "__main__":
    run("benchmark")
