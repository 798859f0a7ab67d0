"""The card of a bundle, its README.md: what the Hugging Face Hub reads, in YAML, and what people read below it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Any

import yaml

from asr.data.module import SpeechData
from asr.evaluation.report import Evaluation


def card(
    config: Mapping[str, Any], data: SpeechData, scores: Mapping[str, Evaluation], weights: str, seconds: float
) -> str:
    """Write it.

    Args:
        config: of the training.
        data: what it was trained on.
        scores: of the finished recognizer, by the name of the data.
        weights: where they come from.
        seconds: that the training took.
    """
    hours = data.train_seconds.sum() / 3600
    encoder = str(config["encoder"]["_target_"]).rsplit(".", 1)[-1].lower()
    front = {
        "library_name": "asr-pipeline",
        "pipeline_tag": "automatic-speech-recognition",
        "license": config["license"],
        "language": sorted({u.lang for u in (data.train[int(k)] for k in data.train_indices[:1000]) if u.lang}),
        "tags": ["automatic-speech-recognition", "ctc", encoder],
        "metrics": ["wer", "cer"],
        "model-index": [{"name": config["name"], "results": [_result(config, *score) for score in scores.items()]}],
    }
    known = {key: value for key, value in front.items() if value}
    lines = [
        f"- {name} ({evaluation.total.duration / 3600:.2f} h): {line}"
        for name, evaluation in scores.items()
        for line in evaluation.lines()[:2]
    ]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---",
            f"# {config['name']}",
            "",
            f"Trained on {len(data.train_indices):,} utterances ({hours:.2f} h) in {seconds / 60:.1f} minutes, "
            f"seed {config['seed']}.",
            "",
            *lines,
            f"- weights: {weights}",
            "",
            f"Command: `{shlex.join(sys.argv)}`",
            "",
            'Use: `scripts/transcribe.py checkpoint=FOLDER a.wav`, or `asr.load("FOLDER").transcribe("a.wav")`.',
            "",
        ]
    )


def _result(config: Mapping[str, Any], split: str, evaluation: Evaluation) -> dict[str, Any]:
    total, name = evaluation.total, str(config["name"])
    rates = {"wer": total.words.rate, "cer": total.characters.rate}
    return {
        "task": {"type": "automatic-speech-recognition"},
        "dataset": {"name": f"{name}, {split}", "type": name, "split": split},
        "metrics": [
            {"type": kind, "value": round(100 * rate, 2), "name": f"{kind.upper()} (%)"}
            for kind, rate in rates.items()
            if isfinite(rate)
        ],
    }
