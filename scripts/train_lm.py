"""Text to a language model: python scripts/train_lm.py train=FILE out=DIR"""

from asr.cli import run

if __name__ == "__main__":
    run("train_lm")
