"""A corpus on disk to manifests: python scripts/prepare.py corpus=an4 corpus.root=DIR out=DIR"""

from asr.cli import run

if __name__ == "__main__":
    run("prepare")
