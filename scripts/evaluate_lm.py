"""A language model's perplexity: python scripts/evaluate_lm.py model=DIR test=FILE"""

from asr.cli import run

if __name__ == "__main__":
    run("evaluate_lm")
