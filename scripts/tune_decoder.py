"""Search a decoder's options: python scripts/tune_decoder.py checkpoint=RUN manifest=DEV.jsonl decoder.lm=LM"""

from asr.cli import run

if __name__ == "__main__":
    run("tune_decoder")
