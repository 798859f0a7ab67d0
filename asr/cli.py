"""The commands behind `scripts/` and `asr …`: Hydra's command line, made safe for file names and for people."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from asr import plugins
from asr.errors import AsrError, ConfigError, near_matches

COMMANDS = {
    "train": "train a recognizer",
    "evaluate": "score a recognizer on a manifest",
    "transcribe": "audio files to text",
    "prepare": "a corpus on disk to manifests",
    "benchmark": "measure speed against the bare kernels",
    "plugins": "list the components and where they come from",
}
TAKES_FILES = ("transcribe",)
PATH_KEYS = (
    "checkpoint", "manifest", "manifests", "out", "compare", "resume", "data.train", "data.validation", "data.test",
    "corpus.root", "corpus.path", "corpus.audio_root",
)  # fmt: skip
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*=")


def main() -> None:
    """`asr COMMAND …`: the entry point of the installed package."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        listing = "\n".join(f"  {command:<11} {what}" for command, what in COMMANDS.items())
        wrong = (
            f"There is no command '{name}'. {near_matches(name, COMMANDS)}\n"
            if name not in ("", "-h", "--help")
            else ""
        )
        print(f"{wrong}usage: asr COMMAND [key=value …]\n{listing}\nasr COMMAND --help shows a command's options.")
        raise SystemExit(1 if wrong or not name else 0)
    run(name, sys.argv[2:])


def run(command: str, arguments: list[str] | None = None) -> None:
    """Run a command; what a person did wrong is printed bare, with exit status 1.

    Args:
        command: one of `COMMANDS`.
        arguments: the words after it; `None` takes them from `sys.argv`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if command == "plugins":
            from asr.commands import list_plugins

            list_plugins()
        else:
            _run_hydra(command, arguments)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run_hydra(command: str, arguments: list[str]) -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a bug keeps its traceback
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plugins.register()
    _register_resolvers()
    for problem in plugins.problems():
        print(f"warning: {problem}", file=sys.stderr)
    files, options = split_arguments(arguments, command in TAKES_FILES)
    argv = sys.argv

    @hydra.main(config_path="pkg://asr.conf", config_name=command, version_base="1.3")
    def task(config: DictConfig) -> None:
        sys.argv = argv  # Lightning starts the other ranks by it
        from asr import commands

        _refuse_multirun_on_devices(config)
        try:
            plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise SystemExit(f"error: {_explain(error, command)}") from None
        try:
            getattr(commands, command)(plain, files) if files else getattr(commands, command)(plain)
        except AsrError as error:  # here, because Hydra wraps what leaves the task
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    sys.argv = [argv[0], *options]
    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, command)) from None
    finally:
        sys.argv = argv


def split_arguments(arguments: list[str], takes_files: bool) -> tuple[list[str], list[str]]:
    """Tell audio files from options, and quote values that Hydra's grammar would refuse or take apart.

    A word is a file if it exists on disk, or is neither an option (`-x`, `~key`) nor a `key=value`.

    Returns:
        files, and options as Hydra takes them.
    """
    files, options = [], []
    takes_value = False
    for word in arguments:
        if takes_value or word.startswith("-"):
            options.append(word)
            takes_value = word in (
                "--config-dir",
                "-cd",
                "--config-name",
                "-cn",
                "--config-path",
                "-cp",
                "--package",
                "-p",
            )
        elif OVERRIDE.match(word) and not (takes_files and os.path.exists(word)):
            options.append(quote(word))
        elif takes_files and not word.startswith("~"):
            files.append(word)
        elif word.startswith("~"):
            options.append(word)
        else:
            raise ConfigError(f"'{word}' is neither an option (key=value) nor a flag (--name).")
    return files, options


def quote(override: str) -> str:
    """Quote the value of a `key=value` if it is a path, or if Hydra's grammar cannot read it as it stands."""
    key, value = override.split("=", 1)
    if value[:1] in ("'", '"', "[", "{") or not value or value == "null":
        return override
    if key.lstrip("+") not in PATH_KEYS and _parses(override):
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        OverridesParser.create().parse_override(override)
    except OverrideParseException:
        return False
    return True


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    from asr.training.folder import run_id

    OmegaConf.register_new_resolver("run_id", run_id, replace=True)


def _refuse_multirun_on_devices(config: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    trainer = config.get("trainer")
    if hydra_config.mode != RunMode.MULTIRUN or trainer is None:
        return
    launcher = str(hydra_config.launcher._target_)
    if "basic_launcher" in launcher and (str(trainer.devices) not in ("1", "[0]") or trainer.get("num_nodes", 1) != 1):
        raise SystemExit(
            "error: -m with several devices would run the sweep on every rank. "
            "Use a launcher that starts a job for each run (hydra/launcher=…), or trainer.devices=1."
        )


def _explain(error: Exception, command: str) -> str:
    """Hydra's message, with what to do about it."""
    from omegaconf.errors import MissingMandatoryValue

    text = str(error).strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{getattr(error, 'full_key', '')}: has to be given: {getattr(error, 'full_key', 'key')}=…"
    missing = re.search(r"(?:Could not find|In '[^']*': Could not find|Could not load) '([^']+)'", text)
    if missing and "/" in missing[1]:
        group, name = missing[1].rsplit("/", 1)
        known = plugins.config_names(group)
        if known:
            return f"{group}={name}: there is no such {group}. {near_matches(name, known)}"
    unknown_key = re.search(r"Key '([^']+)' is not in struct[\s\S]*?full_key: ([\w.]+)", text)
    if unknown_key:
        full = unknown_key[2]
        return f"{full}: there is no such option. {_near_key(full, command)}".rstrip()
    unknown_group = re.search(r"Could not override '([^']+)'", text)
    if unknown_group:
        key = unknown_group[1]
        return f"{key}: there is no such option. {_near_key(key, command)}".rstrip()
    return text


def _near_key(key: str, command: str) -> str:
    """What a mistyped key was likely meant to be, and how to add a key that a Lightning class takes."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    parent, _, last = key.rpartition(".")
    GlobalHydra.instance().clear()
    with initialize_config_module("asr.conf", version_base="1.3"):
        node: Any = compose(command)
    for part in parent.split(".") if parent else ():
        node = node.get(part) if hasattr(node, "get") else None
    options = [str(name) for name in node] if hasattr(node, "keys") else []
    hint = near_matches(last, options) if options else ""
    if parent.split(".")[0] in ("trainer", "callbacks", "logger", "optimizer"):
        hint += f" To pass {last} on to the class, write +{key}=…"
    return hint
