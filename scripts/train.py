"""Train a recognizer: python scripts/train.py +experiment=demo"""

from asr.cli import run

if __name__ == "__main__":
    run("train")
