"""Where components come from: our `conf/` folder and those of installed third-party packages.

A package adds one entry point of the group `asr.plugins`, whose value names an importable package
with a folder `conf/<group>/<name>.yaml` in it. Its configs then stand beside ours.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from asr.errors import AsrError, ConfigError, near_matches

ENTRY_POINT_GROUP = "asr.plugins"
COMPONENT_GROUPS = (
    "text", "tokenizer", "featurizer", "augment", "encoder", "objective", "decoder", "corpus", "lm", "vad",
)  # fmt: skip
"""The plugin kinds: config groups whose files name a class of ours or of a plugin."""
PACKAGE = re.compile(r"\s*#\s*@package\s+augment\.\w")
"""How a config begins that stands beside others of its group."""


@dataclass(frozen=True)
class Provider:
    """A package that brings configs."""

    name: str
    folder: Path | None
    """Its `conf` folder, `None` where it has none."""
    problem: str = ""


@dataclass(frozen=True)
class Component:
    """A config file of a group, and the class that it names."""

    group: str
    name: str
    provider: str
    target: str | None
    path: Path
    problem: str = ""


@lru_cache
def providers() -> tuple[Provider, ...]:
    """Our own configs, then those of every installed plugin, in the order in which Hydra looks."""
    found = [_provider("asr", "asr")]
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        found.append(_provider(entry.name, entry.module))
    return tuple(found)


def _provider(name: str, package: str) -> Provider:
    try:
        spec = importlib.util.find_spec("asr.conf" if package == "asr" else package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return Provider(name, None, f"the package '{package}' that its entry point names cannot be imported")
    location = Path(next(iter(spec.submodule_search_locations)))
    folder = location if package == "asr" else location / "conf"
    if not folder.is_dir():
        return Provider(name, None, f"the package '{package}' has no folder 'conf' (is it in its package data?)")
    return Provider(name, folder)


def config_names(group: str) -> dict[str, Path]:
    """Every config of a group, by name, as Hydra resolves it: the first provider wins."""
    return {place.stem: path for place, path in config_files().items() if place.parent == Path(group)}


def config_files() -> dict[Path, Path]:
    """Every config, by its place in its provider's folder, as Hydra resolves it."""
    found: dict[Path, Path] = {}
    for provider in providers():
        if provider.folder:
            for path in sorted(provider.folder.rglob("*.yaml")):
                found.setdefault(path.relative_to(provider.folder), path)
    return found


def named_config(group: str, name: str) -> dict[str, Any]:
    """The content of a group's config.

    Raises:
        ConfigError: there is none of that name.
    """
    known = config_names(group)
    if name not in known:
        raise ConfigError(f"{group}={name}: there is no such config. {near_matches(name, known)}")
    return yaml.safe_load(known[name].read_text(encoding="utf-8"))


def components(groups: Iterable[str]) -> Iterator[Component]:
    """Every config of these groups from every provider, those included that an earlier provider shadows."""
    for group in groups:
        owner: dict[str, str] = {}
        for provider in providers():
            for path in sorted((provider.folder / group).glob("*.yaml")) if provider.folder else ():
                first = owner.setdefault(path.stem, provider.name)
                problem = "" if first == provider.name else f"shadowed by '{first}', which has the same name"
                target = None
                try:
                    target = _target(path)
                except ConfigError as error:
                    problem = problem or str(error)
                if group in COMPONENT_GROUPS and target is None:
                    problem = problem or "without '_target_', so it names no class"
                if group == "augment" and not PACKAGE.match(path.read_text(encoding="utf-8", errors="replace")):
                    problem = problem or f"without the first line '# @package augment.{path.stem}'"
                yield Component(group, path.stem, provider.name, target, path, problem)


def _target(path: Path) -> str | None:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {path} ({' '.join(str(error).split())}).") from None
    if not isinstance(config, dict):
        return None
    return config.get("_target_", "" if "defaults" in config else None)  # or another config says it


def allowed_targets(group: str) -> set[str]:
    """The `_target_`s that installed configs of a group name: all that a bundle may ask for."""
    return {target for path in config_names(group).values() if (target := _target(path))}


def problems() -> list[str]:
    """What is wrong with the installed plugins: no `conf`, or names that are already taken."""
    found = [f"plugin '{p.name}': {p.problem}" for p in providers() if p.problem]
    groups = sorted({path.parent.name for p in providers() if p.folder for path in p.folder.glob("*/*.yaml")})
    found += [f"plugin '{c.provider}': {c.group}={c.name} is {c.problem}" for c in components(groups) if c.problem]
    return found


def register() -> None:
    """Put the plugins' `conf` folders on Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class AsrPlugins(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for provider in providers()[1:]:
                if provider.folder:
                    search_path.append(f"asr plugin {provider.name}", f"file://{provider.folder}")

    if not any(plugin.__name__ == "AsrPlugins" for plugin in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(AsrPlugins)


def instantiate(config: Mapping[str, Any], key: str, /, **arguments: Any) -> Any:
    """Build the component that a config names by `_target_`.

    Args:
        config: `_target_` and the constructor's arguments.
        key: where the config stands, as a user types it; for messages.
        arguments: sizes and other things known only at run time; they win over the config.

    Raises:
        ConfigError: there is no such class, or it does not take one of the options.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import get_object
    from hydra.utils import instantiate as hydra_instantiate

    target = config.get("_target_") if isinstance(config, Mapping) else None
    if not target:
        raise ConfigError(f"{key}: the config has no '_target_', so it names no component.")
    try:
        constructor = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: cannot load '{target}' ({error}). Is its package installed?") from None
    _check_options(constructor, config, arguments, key)
    try:
        # run-time arguments are handed over outside Hydra, which would copy them into a config
        return hydra_instantiate({**config, "_partial_": True}, _convert_="all")(**arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, AsrError):
            raise error.__cause__ from None
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        if target.startswith(("lightning.", "torch.")):  # a value that the library refuses, or a package that it lacks
            raise ConfigError(f"{key}: {error}") from error
        raise


def _check_options(constructor: Callable, config: Mapping, arguments: Mapping, key: str) -> None:
    parameters = inspect.signature(constructor).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    reserved = {"_target_", "_convert_", "_recursive_"}
    for option in config:
        if option not in parameters and option not in reserved:
            raise ConfigError(f"{key}: has no option '{option}'. {near_matches(str(option), parameters)}")
        if option in parameters:
            check_type(config[option], parameters[option].annotation, f"{key}.{option}")
    given = {**config, **arguments}
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    missing = [name for name in missing if parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL]
    if missing:
        raise ConfigError(f"{key}: the option '{missing[0]}' has to be given: {key}.{missing[0]}=…")


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Raise a ConfigError if a value is not what an annotation says: numbers, booleans, strings, `None`, lists of them.

    An annotation that names anything else is not looked at.
    """
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, {"typing": typing, **vars(typing)})
        except (NameError, AttributeError, TypeError):  # a class that its own module knows
            return
    if not _is_of(value, annotation):
        raise ConfigError(f"{key}={value}: must be of type {_type_name(annotation)}, found {type(value).__name__}.")


def _is_of(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float, bool, str):
        return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or type(value) is not bool)
    if (get_origin(kind) or kind) in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        if get_origin(kind) is tuple and Ellipsis not in parts:
            return len(value) == len(parts) and all(map(_is_of, value, parts))
        return not parts or all(_is_of(item, parts[0]) for item in value)
    return True


def _type_name(kind: Any) -> str:
    """As YAML writes such a value: `int or null`, `[float, …]`."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_type_name, parts))
    if get_origin(kind) in (list, tuple, Sequence):
        ends = get_origin(kind) is tuple and Ellipsis not in parts
        return f"[{', '.join(map(_type_name, parts if ends else parts[:1]))}{'' if ends else ', …'}]"
    return "null" if kind in (None, NoneType) else getattr(kind, "__name__", str(kind))
