"""Average checkpoints: python scripts/average.py checkpoints=[A.ckpt,B.ckpt] out=BUNDLE manifest=DEV.jsonl"""

from asr.cli import run

if __name__ == "__main__":
    run("average")
