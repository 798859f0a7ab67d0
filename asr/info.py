"""What a checkpoint is: its data, scores, labels, size, licence and versions."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from asr.bundle import WEIGHTS, Checkpoint, load_tokenizer, open_checkpoint, weights_header
from asr.configs import STAGES, check_config
from asr.engines import OnnxModel

FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
"""The metadata ahead of a card's text, in YAML."""


def describe_checkpoint(checkpoint: str | Path) -> list[tuple[str, str]]:
    """What a checkpoint of any kind says of itself, as rows (what, value).

    Raises:
        CheckpointError: there is none, or it is damaged or unsafe.
    """
    found = open_checkpoint(checkpoint)
    check_config(found.config, found.path)
    stages = {stage: found.config[stage]["_target_"].rsplit(".", 1)[-1] for stage in STAGES}
    options = [f"{k}={v}" for k, v in found.config["decoder"].items() if v is not None and k != "_target_"]
    labels = load_tokenizer(found).labels
    more = " …" if len(labels) > 12 else ""
    text = FRONT.sub("", found.card, count=1).splitlines()
    front = _front(found.card)
    rows = [
        ("recognizer", str(checkpoint)),
        ("name", next((line[2:] for line in text if line.startswith("# ")), "")),
        ("data", next((line for line in text if line.startswith("Trained on ")), "")),
        *(("scores", line[2:]) for line in text if re.match(r"- .*: (WER|CER) ", line)),
        ("model", f"{stages['encoder']} on {stages['featurizer']}, {_size(found)}"),
        ("labels", f"{len(labels):,}: {' '.join(labels[:12])}{more}"),
        ("decoder", " ".join([stages["decoder"], *options])),
        ("language", ", ".join(map(str, _list(front.get("language"))))),
        ("licence", str(front.get("license", ""))),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(found.versions.items()) if k != "format")),
    ]
    # a stranger's text must not steer the terminal
    return [(what, "".join(c if c.isprintable() else " " for c in value) or "unknown") for what, value in rows]


def _front(card: str) -> dict[str, Any]:
    found = FRONT.match(card)
    try:
        front = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError):
        front = {}
    return front if isinstance(front, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _size(found: Checkpoint) -> str:
    if found.path.is_dir():
        shapes = weights_header(found.path / WEIGHTS)[1].values()
        return f"{sum(map(math.prod, shapes)) / 1e6:.2f} M parameters"
    weights = found.weights()
    if isinstance(weights, OnnxModel):
        return f"{len(weights.content) / 1e6:.1f} MB of {'8-bit integers' if weights.int8 else 'float32'}"
    return f"{sum(value.numel() for value in weights.values()) / 1e6:.2f} M parameters"
