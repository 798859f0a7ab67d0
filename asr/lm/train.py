"""What the commands `train_lm` and `evaluate_lm` do: text files → language model → perplexity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from asr import plugins
from asr.errors import ConfigError, DataError, near_matches
from asr.lm import load
from asr.lm.arpa import write_arpa
from asr.lm.base import UNITS
from asr.lm.folder import check_replaceable
from asr.lm.ngram import Ngram
from asr.lm.text import Sentences, as_paths, label_splitter


def train(config: dict[str, Any]) -> None:
    """Train a language model, save it, and print what it is and how well it predicts other text."""
    out, unit = Path(config["out"]), config["unit"]
    if unit not in UNITS:
        raise ConfigError(f"unit={unit}: no such unit. {near_matches(str(unit), UNITS)}")
    check_replaceable(out)
    if out.is_dir() and any(out.iterdir()) and not config["overwrite"]:
        raise DataError(f"{out}: holds a language model already. Choose another out=DIR, or add overwrite=true.")
    if config["lm"] is None:
        raise ConfigError(f"lm: which kind? lm={'|'.join(plugins.config_names('lm'))}")
    if config["arpa"] and Path(config["arpa"]).exists() and not config["overwrite"]:
        raise DataError(f"arpa={config['arpa']}: is there already. Write another, or add overwrite=true.")
    trainer = plugins.instantiate(config["lm"], "lm")
    texts, tests = map(_reader(config, unit), ("train", "test"))
    if not texts.paths:
        raise ConfigError("train: which text? train=FILE or train=[a.txt,b.jsonl]")
    metadata = {"text": _normalization(config), "train": [str(path) for path in texts.paths]}
    model = trainer.fit(texts, unit, metadata)
    print(f"text {texts.describe(unit)}\n{model.describe()}")
    model.save(out)
    print(f"saved {out}")
    if config["arpa"] and isinstance(model, Ngram):
        write_arpa(model, config["arpa"])
        print(f"saved {config['arpa']}")
    if tests.paths:
        print(f"test {model.perplexity(tests)}")
    _print_samples(model, config["samples"])
    if config["arpa"] and not isinstance(model, Ngram):
        raise ConfigError(f"arpa={config['arpa']}: only n-gram models can be written as ARPA files (lm=ngram).")


def evaluate(config: dict[str, Any]) -> None:
    """Print a language model's perplexity and share of unknown words, and sentences drawn from it."""
    model = load(config["model"])
    if not config["test"] and config["samples"] < 1:
        raise ConfigError("test: which text? test=FILE or test=[a.txt,b.jsonl]; or samples=5, to see what it learnt")
    print(model.describe())
    if config["test"]:
        tests = _reader(config, model.unit)("test")
        own, here = model.metadata.get("text"), _normalization(config)
        if own not in (None, here):
            print(f"note: the model was trained on text normalised by {_spell(own)}, this is by {_spell(here)}.")
        perplexity = model.perplexity(tests)
        print(f"test {tests.describe(model.unit)}\ntest {perplexity}")
    _print_samples(model, config["samples"])


def _print_samples(model: Any, count: int) -> None:
    """Sentences drawn from a model, if it can draw any."""
    if count > 0 and hasattr(model, "sample"):
        print("\n".join(f"sample {sentence}" for sentence in model.sample(count)))


def _reader(config: dict[str, Any], unit: str) -> Callable[[str], Sentences]:
    """A function that opens the files of a key: normalised, and in words or the recognizer's labels."""
    if config["unknown"] not in ("error", "skip"):
        raise ConfigError(f"unknown={config['unknown']}: no such value. There are: error, skip.")
    if unit == "labels" and not config["checkpoint"]:
        raise ConfigError("checkpoint: a model of labels needs the recognizer whose labels they are: checkpoint=RUN")
    normalize: Callable[[str], str] | None = None
    split: Callable[[str], Sequence[str]] = str.split
    if config["checkpoint"]:
        from asr.bundle import load_pipeline

        pipeline = load_pipeline(config["checkpoint"])
        normalize = pipeline.text
        if unit == "labels":
            split = label_splitter(pipeline.tokenizer)
    if config["text"] is not None or normalize is None:
        normalize = plugins.instantiate(config["text"] or _standard(), "text")
    skip = config["unknown"] == "skip"
    return lambda key: Sentences(as_paths(config[key], key), normalize, split, skip)


def _normalization(config: dict[str, Any]) -> dict[str, Any]:
    """What normalises the text, in plain values."""
    if config["checkpoint"] and config["text"] is None:
        return {"checkpoint": str(config["checkpoint"])}
    return dict(config["text"] or _standard())


def _standard() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(plugins.config_names("text")["standard"].read_text("utf-8"))
    return config


def _spell(normalization: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in normalization.items())
