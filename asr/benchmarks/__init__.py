"""Speed, as ratios against the bare kernels measured in the same run; what decoders gain; how exact times are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from asr.errors import ConfigError, near_matches

BENCHMARKS = {
    "training": "our step over the bare kernels, and waiting for data",
    "memory": "the largest data.batch_seconds that the GPU holds",
    "transcription": "real-time factor of files, one at a time and together",
    "long": "an hour in one file beside its utterances in files of their own",
    "decoding": "our beam search beside other decoders: speed, and how good what they find is",
    "shards": "an epoch read from shards over one read from files",
    "scale": "a start of training on millions of utterances: index, first batch, memory",
    "folds": "what beam search and language models gain, on the runs of a cross-validation",
    "word_times": "how far words are from where they are spoken, by decoder and aligner",
    "ablation": "what each part of a recipe is worth, by trainings that leave it out",
    "speechbrain": "the error rates of a run beside a SpeechBrain model's, trained on the same speech",
}
UTTERANCES = {
    "decoding": 16,
    "scale": 1_000_000,
    **dict.fromkeys(("training", "memory", "transcription", "shards"), 948),
}
"""How many each takes if not told; the others take all."""


def run(name: str, config: Mapping[str, Any]) -> None:
    """Run a benchmark, print what it found, and write it to `json`.

    Raises:
        ConfigError: there is no such benchmark, `out` is in use, or `json` is a file of another kind.
    """
    if name not in BENCHMARKS:
        wrong = f"There is no benchmark '{name}'. {near_matches(name, BENCHMARKS)}" if name else "Which benchmark?"
        listing = "\n".join(f"  benchmark {known:<14} {what}" for known, what in BENCHMARKS.items())
        raise ConfigError(f"{wrong}\n{listing}")
    config = {**config, "utterances": config["utterances"] or UTTERANCES.get(name, 0)}
    from asr.benchmarks.report import check_report, report

    check_report(config["json"])
    folder = Path(config["out"])
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"out={folder}: cannot be made ({error.strerror}). Name a folder that does not exist."
        ) from None
    try:
        benchmark = getattr(import_module(f"{__name__}.{name}"), name)  # each is what its module is called
        measurements, setting = benchmark(config, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(name, measurements, setting, config["json"])
