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
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from asr.configs import FORMAT, STAGES, check_amount, check_config, map_options, names_file
from asr.engines import OnnxModel
from asr.errors import CheckpointError
from asr.exported import read_exported
from asr.pipeline import Pipeline, build
from asr.plugins import instantiate
from asr.sharing import locate

WEIGHTS, CARD, LM = "model.safetensors", "README.md", "lm"
FILES = (WEIGHTS, CARD, LM, "config.yaml", "tokenizer")
OWN = "bundle:"
"""Before a path in a bundle's config that is relative to the bundle."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, opened and not trusted yet."""

    path: Path
    """Its folder or file."""
    config: Any
    tokenizer: Path | Mapping[str, bytes]
    """A folder, or the content of the files in it."""
    card: str
    """Markdown: the bundle's README.md; empty where there is none."""
    versions: Mapping[str, str]
    """Those that wrote it, as far as it says so."""
    weights: Callable[[], Any]
    """Reads the acoustic model's weights by name, or is an exported file's `OnnxModel`."""


def pipeline_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a training's config that its recognizer needs."""
    conditioning = {"self_conditioning": config["self_conditioning"]} if config.get("self_conditioning") else {}
    return {"format": FORMAT, **{key: config[key] for key in (*STAGES, "normalization")}, **conditioning}


def versions() -> dict[str, str]:
    """The versions that write a checkpoint now."""
    found = {}
    for name in ("asr-pipeline", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "unknown"
    return found


def save_bundle(folder: Path, pipeline: Pipeline, config: Mapping[str, Any], card: str) -> None:
    """Write a bundle, whole or not at all.

    Args:
        folder: replaced if it is there.
        pipeline: the trained stages.
        config: as `pipeline_config` gives it.
        card: Markdown: data, hours, error rates, command.
    """
    from safetensors.torch import save

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        new = Path(partial) / "new"
        (new / "tokenizer").mkdir(parents=True)
        weights = {name: value.contiguous() for name, value in pipeline.model.state_dict().items()}
        # the Hub looks for the format; safetensors' own file could be read by its owner only
        (new / WEIGHTS).write_bytes(save(weights, {"format": "pt", **versions()}))
        pipeline.tokenizer.save(new / "tokenizer")
        _write_config(new, {**config, "decoder": _take_along(config["decoder"], new)})
        (new / CARD).write_text(card, "utf-8")
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

    Those that the old one reads stay, but where the new one has others of their names.

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
        shutil.copytree(folder, new)
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
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        (shutil.copytree if Path(value).is_dir() else shutil.copy)(value, place)
        return f"{OWN}{LM}/{place.name}"

    return map_options(decoder, take)


def _own_decoder(config: Any, source: Path) -> Any:
    """A checkpoint's config with the paths of its decoder's files, which must lie in it, made absolute."""
    if not isinstance(config, dict) or not isinstance(config.get("decoder"), dict):
        return config

    def refuse(key: str, value: Any) -> None:
        if names_file(key, value):
            raise _outside(source, key, value)

    map_options(config["decoder"], refuse)
    return {**config, "decoder": resolve_paths(config["decoder"], source)}


def resolve_paths(decoder: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """A decoder's config in which paths of a bundle's own files, `bundle:lm/…`, are absolute.

    Raises:
        CheckpointError: the bundle has no such file, or the checkpoint no bundle.
    """

    def resolve(key: str, value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith(OWN):
            return value
        folder, place = find_bundle(locate(checkpoint)), PurePosixPath(value.removeprefix(OWN))
        if place.is_absolute() or ".." in place.parts:
            raise _outside(folder, key, value)
        if not (folder / place).exists():
            raise CheckpointError(f"{folder}: decoder.{key}={value} is missing. Copy the whole folder.")
        return str((folder / place).resolve())

    return map_options(decoder, resolve)


def own_paths(decoder: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The inverse of `resolve_paths`: what a decoder's config says wherever the bundle lies."""
    folder = folder.resolve()

    def shorten(key: str, value: Any) -> Any:
        if not names_file(key, value) or not Path(value).is_relative_to(folder):
            return value
        return OWN + Path(value).relative_to(folder).as_posix()

    return map_options(decoder, shorten)


def _outside(source: Path, key: str, value: str) -> CheckpointError:
    return CheckpointError(f"{source}: refuses decoder.{key}={value}: it lies outside the bundle.")


def load_pipeline(checkpoint: str | Path | Checkpoint, decoder: Mapping[str, Any] | None = None) -> Pipeline:
    """Build the pipeline of a trained recognizer and load its weights, on the CPU, in evaluation mode.

    Args:
        checkpoint: as in `open_checkpoint`, or what that returned.
        decoder: a config to use instead of the checkpoint's own; its paths, too, may be `bundle:lm/…`.

    Raises:
        CheckpointError: nothing there, damaged, unsafe, or not fitting.
    """
    found = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    check_config(found.config, found.path)
    config = {**found.config, "decoder": resolve_paths(decoder or found.config["decoder"], found.path)}
    weights = found.weights()
    return _build(config, load_tokenizer(found), weights, found.path)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint whose config was checked."""
    tokenizer_class = _class(checkpoint.config["tokenizer"]["_target_"])
    if isinstance(checkpoint.tokenizer, Path):
        return tokenizer_class.load(checkpoint.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in checkpoint.tokenizer.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        return tokenizer_class.load(Path(folder))


def open_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Open a checkpoint of any kind, without building anything.

    Args:
        checkpoint: a bundle's folder, a zip of it, a run's folder, a Lightning `.ckpt` of a run (with the
            average, where training averaged the weights: `callbacks=[…,ema]`), an exported `.onnx`,
            or a model of the Hugging Face Hub; see `locate` for the latter.

    Raises:
        CheckpointError: nothing there, or damaged.
    """
    path = locate(checkpoint)
    if path.is_file() and path.suffix == ".ckpt":
        return opened(path, read_checkpoint(path))
    if path.is_file() and path.suffix == ".onnx":
        config, files, text, written, model = read_exported(path)
        return Checkpoint(path, _own_decoder(config, path), files, text, written, lambda: model)
    for folder in (path / "bundle", path):
        if (folder / "config.yaml").is_file() and (folder == path / "bundle" or (folder / WEIGHTS).is_file()):
            return _open_folder(folder)
    if (path / "checkpoints").is_dir():
        best = _best(path)
        return opened(best, read_checkpoint(best))
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not path.exists() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" Did you mean {path.parent / close[0]}?" if close else ""
    raise CheckpointError(
        f"checkpoint={checkpoint}: no recognizer there. Give a run's folder, its bundle (folder or .zip), a .ckpt, an "
        f"exported .onnx, or hf://user/name.{hint}"
    )


def load_config(checkpoint: str | Path) -> dict[str, Any]:
    """The config of what `load_pipeline` loads, as `pipeline_config` gives it.

    Raises:
        CheckpointError: there is none, or it is an exported file, whose weights are no longer those of the config.
    """
    found = open_checkpoint(checkpoint)
    if found.path.suffix == ".onnx":
        raise CheckpointError(f"{checkpoint}: is an exported file. Name the bundle that it was made of.")
    config: dict[str, Any] = found.config
    return config


def _best(run: Path) -> Path:
    """The checkpoint with the least of what the run monitors: `best-012-003400-wer0.1250-cer0.0410-loss8.1250.ckpt`."""
    config = _read_config(run) if (run / "config.yaml").is_file() else None
    monitor = config.get("monitor") if isinstance(config, dict) else None
    measures = [str(monitor).removeprefix("val_"), "wer"]  # not every name has the loss

    def figures(checkpoint: Path) -> list[float]:
        found = [re.search(re.escape(measure) + r"(-?\d+\.\d+)", checkpoint.name) for measure in measures]
        return [float(figure[1]) if figure else math.inf for figure in found]

    best = sorted((run / "checkpoints").glob("best-*.ckpt"), key=figures)
    found = best or sorted((run / "checkpoints").glob("last.ckpt"))
    if not found:
        raise CheckpointError(f"checkpoint={run}: the run has no bundle and no checkpoint yet.")
    return found[0]


def _open_folder(folder: Path) -> Checkpoint:
    config, card = _own_decoder(_read_config(folder), folder), folder / CARD

    def weights() -> dict[str, Any]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({error}).") from None

    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    return Checkpoint(folder, config, folder / "tokenizer", text, weights_header(folder / WEIGHTS)[0], weights)


def weights_header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """What a safetensors file says of itself, and the shapes of its tensors; nothing if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}, {}


def _read_config(folder: Path) -> Any:
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid YAML ({error}).") from None
    check_amount(config, path)
    return config


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a run's `.ckpt`, on the CPU; with `mmap`, of tensors only what is looked at is read.

    Raises:
        CheckpointError: it is damaged, holds code, or is not of this toolkit.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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


def opened(path: Path, state: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint whose content `read_checkpoint` gave."""
    recognizer = state["recognizer"]
    tokenizer, written = recognizer["tokenizer"], recognizer.get("versions", {})
    return Checkpoint(path, recognizer["config"], tokenizer, "", written, lambda: model_weights(state))


def describe(pipeline: Pipeline, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds besides the weights, so that it can be loaded without its run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline.tokenizer.save(Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return {"config": pipeline_config(config), "tokenizer": files, "versions": versions()}


def _build(config: Mapping[str, Any], tokenizer: Any, weights: Any, source: Path) -> Pipeline:
    """Build the pipeline of weights or of an exported model, and see that they are of one recognizer."""
    try:
        if isinstance(weights, OnnxModel):
            if weights.labels != len(tokenizer):
                raise CheckpointError(f"{source}: has {weights.labels} labels, but its tokenizer {len(tokenizer)}.")
            return build(config, tokenizer=tokenizer, model=weights)
        _check_encoder(config, weights, source)
        pipeline = build(config, tokenizer=tokenizer)
    except (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise CheckpointError(f"{source}: its config makes no recognizer ({type(error).__name__}: {error}).") from error
    try:
        pipeline.model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise _misfit(source, str(error).splitlines()[-1].strip()) from None
    pipeline.model.eval().requires_grad_(False)
    return pipeline


def _check_encoder(config: Mapping[str, Any], weights: Mapping[str, Any], source: Path) -> None:
    """Compare the encoder's shapes before it is built: a config may ask for more memory than there is."""
    import torch

    dim = instantiate(config["featurizer"], "featurizer").dim
    try:
        with torch.device("meta"):
            expected = instantiate(config["encoder"], "encoder", input_dim=dim).state_dict()
    except RuntimeError:  # it computes with what it holds
        return
    for name, value in expected.items():
        found = getattr(weights.get(f"encoder.{name}"), "shape", None)
        if found != value.shape:
            have = "is missing" if found is None else f"has the shape {tuple(found)}"
            raise _misfit(source, f"encoder.{name} {have}, not {tuple(value.shape)}.")


def _misfit(source: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{source}: its weights do not fit its own config. {detail}")


def _class(target: str) -> Any:
    from hydra.utils import get_class

    return get_class(target)
