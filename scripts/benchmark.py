"""Measure speed: python scripts/benchmark.py training, transcription or decoding"""

from asr.cli import run

if __name__ == "__main__":
    run("benchmark")
