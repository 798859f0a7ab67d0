"""The words of transcripts to their times: python scripts/align.py checkpoint=RUN manifest=FILE.jsonl out=DIR"""

from asr.cli import run

if __name__ == "__main__":
    run("align")
