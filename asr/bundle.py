"""A trained recognizer as one folder: `config.yaml`, `model.safetensors`, `tokenizer/`, `README.md` (its card).

Files that its decoder reads, such as a language model, lie in `lm/`, and the config says `bundle:lm/…`.

Loading executes no code of the bundle: weights are safetensors, the config is plain YAML, and each of its stages may
only be a class that an installed config of the same group names.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from asr.errors import CheckpointError
from asr.pipeline import Pipeline, build
from asr.plugins import allowed_targets

STAGES = ("text", "tokenizer", "featurizer", "encoder", "decoder")
FORMAT = 1
LM = "lm"
FILE_OPTIONS = ("lm", "label_lm", "lexicon", "hotwords", "label_prior")
"""Options of decoders that may name a file or folder, which a bundle takes along."""
OWN = "bundle:"
"""Before a path in a bundle's config that is relative to the bundle."""


def pipeline_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a training's config that its recognizer needs."""
    conditioning = {"self_conditioning": config["self_conditioning"]} if config.get("self_conditioning") else {}
    return {"format": FORMAT, **{key: config[key] for key in (*STAGES, "normalization")}, **conditioning}


def save_bundle(folder: Path, pipeline: Pipeline, config: Mapping[str, Any], card: str) -> None:
    """Write a bundle, whole or not at all.

    Args:
        folder: replaced if it is there.
        pipeline: the trained stages.
        config: as `pipeline_config` gives it.
        card: Markdown: data, hours, error rates, command.
    """
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        new = Path(partial) / "new"
        (new / "tokenizer").mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in pipeline.model.state_dict().items()}, new / "model.safetensors")
        pipeline.tokenizer.save(new / "tokenizer")
        _write_config(new, {**config, "decoder": _take_along(config["decoder"], new)})
        (new / "README.md").write_text(card, "utf-8")
        _swap(new, folder)


def _swap(new: Path, folder: Path) -> None:
    """Put a new folder in the place of another; if that fails, the old one stays."""
    old = new.with_name("old")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    content = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(content, "utf-8")


def find_bundle(checkpoint: str | Path) -> Path:
    """The bundle that a checkpoint is, or holds.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(checkpoint).resolve()
    folder = path / "bundle" if (path / "bundle" / "config.yaml").is_file() else path
    if not (folder / "config.yaml").is_file() or not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"checkpoint={checkpoint}: no bundle. Give a bundle, or the folder of a run that holds one."
        )
    return folder


def install_decoder(checkpoint: str | Path, decoder: Mapping[str, Any]) -> Path:
    """Give a bundle another decoder as its own, with the files that it reads.

    Args:
        checkpoint: a bundle, or a run's folder that holds one.
        decoder: its config.

    Returns:
        the bundle.

    Raises:
        CheckpointError: there is no bundle.
    """
    folder = find_bundle(checkpoint)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        new = Path(partial) / "new"
        shutil.copytree(folder, new, ignore=shutil.ignore_patterns(LM))
        config = _read_config(folder)
        _write_config(new, {**config, "decoder": _take_along(resolve_paths(decoder, folder), new)})
        _swap(new, folder)
    return folder


def _take_along(decoder: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the files and folders that a decoder's config names into a bundle, and name them there."""

    def take(key: str, value: Any) -> Any:
        if not names_file(key, value):
            return value
        place = folder / LM / (key + "".join(Path(value).suffixes if Path(value).is_file() else ()))
        place.parent.mkdir(exist_ok=True)
        (shutil.copytree if Path(value).is_dir() else shutil.copy)(value, place)
        return f"{OWN}{LM}/{place.name}"

    return map_options(decoder, take)


def resolve_paths(decoder: Any, checkpoint: str | Path) -> Any:
    """A decoder's config in which paths of a bundle's own files, `bundle:lm/…`, are absolute.

    Raises:
        CheckpointError: the bundle has no such file, or the checkpoint no bundle.
    """

    def resolve(key: str, value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith(OWN):
            return value
        folder = find_bundle(checkpoint)
        path = (folder / value.removeprefix(OWN)).resolve()
        if not path.is_relative_to(folder):
            raise CheckpointError(f"{folder}: refuses decoder.{key}={value}: it lies outside the bundle.")
        if not path.exists():
            raise CheckpointError(f"{folder}: decoder.{key}={value} is missing. Copy the whole folder.")
        return str(path)

    return map_options(decoder, resolve) if isinstance(decoder, Mapping) else decoder


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


def load_pipeline(checkpoint: str | Path, decoder: Mapping[str, Any] | None = None) -> Pipeline:
    """Build the pipeline of a trained recognizer and load its weights, on the CPU, in evaluation mode.

    Args:
        checkpoint: a bundle, a run's folder, or a Lightning `.ckpt` of a run; where training averaged the weights
            (`callbacks=[…,ema]`), its average.
        decoder: a config to use instead of the bundle's own; its paths, too, may be `bundle:lm/…`.

    Raises:
        CheckpointError: nothing there, damaged, unsafe, or not fitting.
    """
    path, decoder = _locate(checkpoint), resolve_paths(decoder, checkpoint)
    pipeline = (_load_ckpt if path.is_file() else _load_folder)(path, decoder)
    pipeline.model.eval().requires_grad_(False)
    return pipeline


def load_config(checkpoint: str | Path) -> dict[str, Any]:
    """The config of what `load_pipeline` loads, as `pipeline_config` gives it."""
    path = _locate(checkpoint)
    if path.is_file():
        return read_checkpoint(path)["recognizer"]["config"]
    config = _read_config(path)
    return {**config, "decoder": resolve_paths(config["decoder"], path)}


def _locate(checkpoint: str | Path) -> Path:
    """The folder of the bundle, or the `.ckpt` file, that a name of a recognizer stands for."""
    path = Path(checkpoint)
    if path.is_file() and path.suffix == ".ckpt":
        return path
    if (path / "bundle" / "config.yaml").is_file():
        return path / "bundle"
    if (path / "config.yaml").is_file() and (path / "model.safetensors").is_file():
        return path
    if (path / "checkpoints").is_dir():
        return _best(path)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.exists() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" Did you mean {path.parent / close[0]}?" if close else ""
    raise CheckpointError(
        f"checkpoint={checkpoint}: no recognizer there. Give a run's folder, its bundle, or a .ckpt file.{hint}"
    )


def _best(run: Path) -> Path:
    best = sorted((run / "checkpoints").glob("best-*.ckpt"), key=_wer)
    found = best or sorted((run / "checkpoints").glob("last.ckpt"))
    if not found:
        raise CheckpointError(f"checkpoint={run}: the run has no bundle and no checkpoint yet.")
    return found[0]


def _wer(checkpoint: Path) -> float:
    """The error rate in a checkpoint's name: `best-012-003400-wer0.1250.ckpt`."""
    found = re.search(r"wer(\d+\.\d+)", checkpoint.name)
    return float(found[1]) if found else math.inf


def _load_folder(folder: Path, decoder: Mapping[str, Any] | None) -> Pipeline:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_config(folder)
    if isinstance(config, dict):
        config = {**config, "decoder": resolve_paths(config.get("decoder"), folder)}
    try:
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'}: cannot be read ({error}).") from None
    return _assemble(config, folder / "tokenizer", weights, decoder, folder)


def _read_config(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / 'config.yaml'}: not valid YAML ({error}).") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a run's `.ckpt`, on the CPU.

    Raises:
        CheckpointError: it is damaged, holds code, or is not of this toolkit.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({error}).") from None
    if not isinstance(state, dict) or not isinstance(state.get("recognizer"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of this toolkit (it describes no recognizer).")
    if not {"config", "tokenizer"} <= set(state["recognizer"]):
        raise CheckpointError(f"{path}: damaged: its recognizer lacks a config or a tokenizer.")
    return state


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The acoustic model's weights in the content of a `.ckpt`."""
    weights = checkpoint.get("state_dict", {})
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}


def _load_ckpt(path: Path, decoder: Mapping[str, Any] | None) -> Pipeline:
    state = read_checkpoint(path)
    recognizer = state["recognizer"]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in recognizer["tokenizer"].items():
            (Path(folder) / Path(name).name).write_bytes(content)
        return _assemble(recognizer["config"], Path(folder), model_weights(state), decoder, path)


def describe(pipeline: Pipeline, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds besides the weights, so that it can be loaded without its run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline.tokenizer.save(Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return {"config": pipeline_config(config), "tokenizer": files}


def _assemble(
    config: Any, tokenizer_folder: Path, weights: Mapping, decoder: Mapping[str, Any] | None, source: Path
) -> Pipeline:
    check_config(config, source)
    tokenizer_class = _class(config["tokenizer"]["_target_"])
    tokenizer = tokenizer_class.load(tokenizer_folder)
    pipeline = build({**config, "decoder": decoder or config["decoder"]}, tokenizer=tokenizer)
    try:
        pipeline.model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: its weights do not fit its own config. {str(error).splitlines()[-1].strip()}"
        ) from None
    return pipeline


def check_config(config: Any, source: Path) -> None:
    """Refuse a config that lacks a stage, or names a class that no installed config of that stage names.

    Raises:
        CheckpointError: see above.
    """
    if not isinstance(config, dict) or any(not isinstance(config.get(stage), dict) for stage in STAGES):
        raise CheckpointError(f"{source}: its config lacks one of the stages {', '.join(STAGES)}.")
    if not isinstance(config.get("normalization"), str):
        raise CheckpointError(f"{source}: its config lacks the key 'normalization'.")
    if config.get("format", 0) > FORMAT:
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


def _is_active(value: Any) -> bool:
    """Whether a value holds a key that Hydra acts on, or an interpolation that could read the environment."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(str(k).startswith("_") or _is_active(v) for k, v in value.items())
    return isinstance(value, list) and any(_is_active(v) for v in value)


def _class(target: str) -> Any:
    from hydra.utils import get_class

    return get_class(target)
