"""A recognizer to one ONNX file: python scripts/export.py checkpoint=RUN out=FILE.onnx"""

from asr.cli import run

if __name__ == "__main__":
    run("export")
