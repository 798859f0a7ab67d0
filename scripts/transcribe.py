"""Audio files to text: python scripts/transcribe.py checkpoint=RUN a.wav folder/"""

from asr.cli import run

if __name__ == "__main__":
    run("transcribe")
