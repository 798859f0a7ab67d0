"""Measure speed against the bare kernels: python scripts/benchmark.py training, or transcription"""

from asr.cli import run

if __name__ == "__main__":
    run("benchmark")
