"""Starting from trained weights; which parameters learn, and how fast, by their names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import lightning as L
import torch
from hydra.utils import get_object
from torch import nn
from torch.optim import Optimizer

from asr.bundle import load_config, load_pipeline
from asr.configs import flatten
from asr.errors import CheckpointError, ConfigError, near_matches
from asr.pipeline import Pipeline
from asr.plugins import components

NO_FILES = {"_target_": "asr.decoders.Greedy"}
"""A decoder in the place of the checkpoint's own, whose language model may be elsewhere by now."""


@torch.no_grad()
def initialize(pipeline: Pipeline, config: Mapping[str, Any]) -> str:
    """Start from the recognizer that `init_from` names: encoder, statistics of the features, and what fits of the head.

    The head's weights are taken label by label, those of blank always; labels that only the new vocabulary has keep
    their fresh ones.

    Returns:
        what was taken, in words, and which options of the encoder, none that changes a shape, are others here.

    Raises:
        CheckpointError: there is no recognizer.
        ConfigError: its features or its encoder are others; with the keys.
    """
    try:
        source = load_pipeline(config["init_from"], NO_FILES)
    except CheckpointError as error:
        raise CheckpointError(f"init_from: {error}") from None
    theirs, ours = source.model, pipeline.model
    stored = load_config(config["init_from"])
    if changed := _changed(stored, config, "featurizer") + _changed(stored, config, "normalization"):
        raise ConfigError(_refusal(config["init_from"], "other features", changed))
    if (old := sorted(theirs.self_conditioning)) != (new := sorted(ours.self_conditioning)):
        raise ConfigError(
            _refusal(config["init_from"], "another encoder", [(f"self_conditioning={old}", f"here {new}")])
        )
    # all that knows no labels: a featurizer may have weights, too
    knowing = ("head.", "conditioning.")
    weights, own = ({n: x for n, x in m.state_dict().items() if not n.startswith(knowing)} for m in (theirs, ours))
    changed = _changed(stored, config, "encoder")
    odd = [n for n in {**weights, **own} if n not in own or n not in weights or weights[n].shape != own[n].shape]
    if odd:
        changed = changed or [(odd[0], "of another shape here")]
        raise ConfigError(_refusal(config["init_from"], "another encoder", changed))
    ours.load_state_dict(weights, strict=False)
    places = {label: k for k, label in enumerate(source.tokenizer.labels)}
    labels = pipeline.tokenizer.labels
    shared = [k for k, label in enumerate(labels) if label in places]
    taken = [places[labels[k]] for k in shared]
    ours.head.weight[shared], ours.head.bias[shared] = theirs.head.weight[taken], theirs.head.bias[taken]
    if ours.self_conditioning:
        ours.conditioning.weight[:, shared] = theirs.conditioning.weight[:, taken]
        ours.conditioning.bias.copy_(theirs.conditioning.bias)
    fresh = [repr(label) for label in labels if label not in places]
    others = f"; new: {', '.join(fresh[:5])}{', …' if len(fresh) > 5 else ''}" if fresh else ""
    trained = f"; was trained with {_listing(changed)}" if changed else ""
    return f"encoder, feature statistics, {len(shared)} of {len(labels)} labels of the head{others}{trained}"


def _changed(theirs: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """What to say to have a stage as it is in another config, and what is said here."""
    old, new = flatten({key: with_defaults(theirs[key])}), flatten({key: with_defaults(ours[key])})
    changed = []
    target = f"{key}._target_"
    if (classes := (old.pop(target, ""), new.pop(target, "")))[0] != classes[1]:
        names = {c.target: c.name for c in components((key,)) if not c.problem}
        changed.append((f"{key}={names.get(classes[0])}", f"here {names.get(classes[1])}"))
        new = {option: new.get(option) for option in old}  # options of one class only
    for option in {**old, **new}:
        if old.get(option) != new.get(option):
            said, here = (x if isinstance(x, str) else json.dumps(x) for x in (old.get(option), new.get(option)))
            changed.append((f"{option}={said}", f"here {here}"))
    return changed


def with_defaults(config: Any) -> Any:
    """A stage's config with the options that it does not give; an older release may not have had them."""
    if not isinstance(config, Mapping):
        return config
    parameters = inspect.signature(get_object(config["_target_"])).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)


def _refusal(checkpoint: str, what: str, changed: Sequence[tuple[str, str]]) -> str:
    other = _listing(changed)
    return f"init_from={checkpoint}: was trained with {what}: {other}. Say the same, or leave init_from out."


def _listing(changed: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{option} ({here})" for option, here in changed)


def select(names: Iterable[str], pattern: str, key: str) -> list[str]:
    """The parameters of a name, below it, or of a pattern such as `encoder.*.bias`.

    Raises:
        ConfigError: there is none.
    """
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not found:
        above = (accumulate(name.split(".")[:-1], "{}.{}".format) for name in names)
        parts = [part for prefixes in above for part in prefixes]
        raise ConfigError(f"{key}: the model has no parameters '{pattern}'. {near_matches(pattern, parts)}")
    return found


def parameter_groups(
    module: nn.Module, learning_rates: Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], list[float]]:
    """Groups of parameters for an optimizer, and the multiple of its learning rate that each is to have.

    Biases and weights of norms have a group of their own, never decayed.

    Args:
        module: those of its parameters that are frozen for good are left out.
        learning_rates: multiples by name or pattern (see `select`); of several that fit, the longest holds.

    Raises:
        ConfigError: no parameter has such a name, or a multiple is not above 0.
    """
    if not isinstance(learning_rates or {}, Mapping):
        raise ConfigError(f"learning_rates={learning_rates}: must name parameters: learning_rates={{encoder:0.1}}.")
    named = named_parameters(module)
    multiples = dict.fromkeys(named, 1.0)
    for pattern, multiple in sorted(flatten(learning_rates or {}).items(), key=lambda item: len(item[0])):
        if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or not 0 < multiple < float("inf"):
            raise ConfigError(
                f"learning_rates: {pattern}: {multiple} must be a number above 0. freeze=[{pattern}] keeps it as it is."
            )
        multiples |= dict.fromkeys(select(named, pattern, "learning_rates"), float(multiple))
    norms = (part for part in module.modules() if isinstance(part, nn.LayerNorm | nn.modules.batchnorm._BatchNorm))
    kept = {id(p) for norm in norms for p in norm.parameters()} | {id(p) for p in named.values() if p.ndim <= 1}
    groups: list[dict[str, Any]] = []
    rates: list[float] = []
    for rate in sorted(set(multiples.values())):
        learning = [p for name, p in named.items() if multiples[name] == rate and p.requires_grad]
        groups.append({"params": [p for p in learning if id(p) not in kept]})
        groups.append({"params": [p for p in learning if id(p) in kept], "weight_decay": 0.0})
        rates += [rate, rate]
    return groups, rates


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a training by the names that its user knows: those of the acoustic model lack its own."""
    return {name.removeprefix("model."): parameter for name, parameter in module.named_parameters()}


class Frozen(L.Callback):
    """Keeps parameters as they are: no updates, and in modules that are frozen whole no dropout or running statistics.

    Those frozen for good get no gradients. Those that learn later get them from the start, as DistributedDataParallel
    settles once whose gradients it reduces; until then they are dropped ahead of clipping and the optimizer's step.

    Args:
        module: what is trained.
        patterns: names or patterns of parameters, see `select`.
        epochs: for so many from the start; `None`: for good.

    Raises:
        ConfigError: no parameter has such a name, or none is left to learn.
    """

    def __init__(self, module: nn.Module, patterns: str | Sequence[str], epochs: int | None = None):
        listed = [patterns] if isinstance(patterns, str) else patterns or []
        if not isinstance(listed, Sequence) or not all(isinstance(pattern, str) for pattern in listed):
            raise ConfigError(f"freeze={patterns}: must name parameters: freeze=[encoder], for one.")
        self.patterns, self.epochs = list(listed), epochs
        if epochs is not None and not self.patterns:
            raise ConfigError(f"freeze_epochs={epochs}: nothing is frozen. Say what: freeze=[encoder], for one.")
        named = named_parameters(module)
        names = {name for pattern in self.patterns for name in select(named, pattern, "freeze")}
        if names == set(named):
            raise ConfigError(f"freeze=[{','.join(self.patterns)}]: nothing is left to learn.")
        self.parameters = [named[name] for name in sorted(names)]
        if epochs is None:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
        frozen = set(map(id, self.parameters))
        owned = ((part, {id(p) for p in part.parameters()}) for part in module.modules())
        whole = {part for above, ids in owned if ids and ids <= frozen for part in above.modules()}
        # cuDNN has no backward pass for recurrent layers in evaluation; there is no dropout inside them
        self.modules = [part for part in whole if not isinstance(part, nn.RNNBase)]

    def __str__(self) -> str:
        count = sum(p.numel() for p in self.parameters)
        until = "" if self.epochs is None else f", for {self.epochs} epochs"
        return f"{', '.join(self.patterns)} ({count / 1e6:.2f} M parameters{until})"

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        for part in self.modules:
            part.training = not self._holds(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        if self._holds(trainer):
            for parameter in self.parameters:
                parameter.grad = None

    def _holds(self, trainer: L.Trainer) -> bool:
        return self.epochs is None or trainer.current_epoch < self.epochs
