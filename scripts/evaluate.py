"""Score a recognizer: python scripts/evaluate.py checkpoint=RUN manifest=FILE.jsonl"""

from asr.cli import run

if __name__ == "__main__":
    run("evaluate")
