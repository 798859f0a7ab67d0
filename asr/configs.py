"""The configs of recognizers: their nested options, the files they name, and what one from elsewhere may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asr.errors import CheckpointError
from asr.plugins import allowed_targets

STAGES = ("text", "tokenizer", "featurizer", "encoder", "decoder")
FORMAT = 1
FILE_OPTIONS = ("lm", "label_lm", "lexicon", "hotwords", "label_prior")
"""Options of decoders that may name a file or folder, which a bundle takes along."""
MOST_VALUES, MOST_LEVELS = 100_000, 50
"""In a bundle's config: YAML's anchors can make billions of a few lines."""


def check_config(config: Any, source: Path) -> None:
    """Refuse a config that lacks a stage, or names a class that no installed config of that stage names.

    Raises:
        CheckpointError: see above.
    """
    check_amount(config, source)
    if not isinstance(config, dict) or any(not isinstance(config.get(stage), dict) for stage in STAGES):
        raise CheckpointError(f"{source}: its config lacks one of the stages {', '.join(STAGES)}.")
    if not isinstance(config.get("normalization"), str):
        raise CheckpointError(f"{source}: its config lacks the key 'normalization'.")
    if not isinstance(written := config.get("format", 0), int) or written > FORMAT:
        raise CheckpointError(f"{source}: written by a newer version of the toolkit. Upgrade to load it.")
    for stage in STAGES:
        target = config[stage].get("_target_")
        if not isinstance(target, str) or target not in allowed_targets(stage):
            raise CheckpointError(
                f"{source}: refuses to load '{target}' as {stage}: no installed config names it. "
                "If it comes from a plugin, install that package first."
            )
        if _is_active({k: v for k, v in config[stage].items() if k != "_target_"}):
            raise CheckpointError(f"{source}: refuses a config with a '_target_' or an interpolation inside '{stage}'.")


def check_amount(config: Any, source: Path) -> None:
    """Refuse a config of very many values, or nested very deeply, or within itself.

    Raises:
        CheckpointError: see above.
    """
    waiting, seen = [(config, 0)], 0
    while waiting:
        value, level = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or level > MOST_LEVELS:
            raise CheckpointError(f"{source}: refuses a config of so many values, or so many within each other.")
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, level + 1) for part in inside]


def _is_active(value: Any) -> bool:
    """Whether a value holds a key that Hydra acts on, or an interpolation that could read the environment."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(str(k).startswith("_") or _is_active(v) for k, v in value.items())
    return isinstance(value, list) and any(_is_active(v) for v in value)


def names_file(key: str, value: Any) -> bool:
    """Whether an option of a decoder names a file or folder that is there."""
    return key.rsplit(".", 1)[-1] in FILE_OPTIONS and isinstance(value, str) and value != "" and Path(value).exists()


def map_options(config: Mapping[str, Any], change: Callable[[str, Any], Any], above: str = "") -> dict[str, Any]:
    """A config with each value, in nested mappings too, as `change(dotted key, value)` makes it."""
    return {
        key: map_options(value, change, f"{above}{key}.")
        if isinstance(value, Mapping)
        else change(f"{above}{key}", value)
        for key, value in config.items()
    }


def flatten(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as a user types them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat
