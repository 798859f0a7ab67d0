"""Estimate the labels' prior: python scripts/label_prior.py checkpoint=RUN manifest=TRAIN.jsonl out=prior.json"""

from asr.cli import run

if __name__ == "__main__":
    run("label_prior")
