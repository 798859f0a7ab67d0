"""The commands behind `scripts/` and `asr …`: Hydra's command line, made safe for file names and for people."""

from __future__ import annotations

import filecmp
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asr import machine, plugins, signals
from asr.errors import AsrError, ConfigError, near_matches
from asr.overrides import OVERRIDE, config_folders, given, literal, split_arguments

COMMANDS = {
    "train": "train a recognizer",
    "evaluate": "score a recognizer on a manifest",
    "transcribe": "audio files to text",
    "align": "the words of transcripts to their times",
    "export": "a recognizer to one ONNX file",
    "info": "what a recognizer is",
    "average": "the mean weights of several checkpoints",
    "tune_decoder": "search a decoder's options",
    "label_prior": "how often a recognizer emits each label",
    "train_lm": "train a language model",
    "evaluate_lm": "a language model's perplexity",
    "prepare": "a corpus on disk to manifests",
    "benchmark": "measure speed, what decoders gain, how exact times are",
    "plugins": "list the components and where they come from",
}
TRAINING = ("train", "train_lm", "benchmark")
"""Commands that mostly have the cores to themselves."""
TAKES_WORDS = ("transcribe", "align", "benchmark")
"""Commands with words that are no options: audio files, the name of a benchmark."""
SEVERAL = ("augment", "callbacks", "logger")
"""Groups of which any number is chosen, by a list."""
NULLABLE = {
    **dict.fromkeys(("threads", "max_steps", "channel", "utterances", "freeze_epochs"), int | None),
    **dict.fromkeys(("endpoint", "max_minutes"), float | None),
}
"""The types of keys that may be null."""
SINGLE = ("checkpoint", "manifest", "out", "output", "compare", "json", "model", "transcript", "run")
"""Keys of one path or text; some may be null."""
LEAST = {
    "epochs": 1, "max_steps": 1, "threads": 1, "channel": 0, "utterances": 1, "blocks": 1, "steps": 1, "rounds": 1,
    "worst": 0, "fresh_utterances": 0, "last": 2, "freeze_epochs": 1, "pocketsphinx": 0, "max_segment": 1,
    "shard_size": 1, "seed": 0,
}  # fmt: skip


def main() -> None:
    """`asr COMMAND …`: the entry point of the installed package."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        listing = "\n".join(f"  {command:<11} {what}" for command, what in COMMANDS.items())
        usage = f"usage: asr COMMAND [key=value …]\n{listing}\nasr COMMAND --help shows a command's options."
        if name in ("-h", "--help"):
            with _until_read():
                print(usage)
            raise SystemExit(0)
        wrong = f"error: there is no command '{name}'. {near_matches(name, COMMANDS)}\n" if name else ""
        print(wrong + usage, file=sys.stderr)
        raise SystemExit(1)
    run(name, sys.argv[2:])


def run(command: str, arguments: list[str] | None = None) -> None:
    """Run a command; what a person did wrong is printed bare, with exit status 1.

    Args:
        command: one of `COMMANDS`.
        arguments: the words after it; `None` takes them from `sys.argv`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    machine.set_up_kernels(alone=command in TRAINING)
    signals.own_stack()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show, and names that are no UTF-8
    if command == "train":  # before the imports: those take longer than a batch system may wait
        signals.install()
    try:
        with _until_read():
            if command == "plugins":
                _run_plugins(arguments)
            elif command == "info":
                _run_info(arguments)
            else:
                _run_hydra(command, arguments)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        signals.restore()


@contextmanager
def _until_read() -> Iterator[None]:
    """Print until what reads our output has enough, such as `head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at the end
        raise SystemExit(141) from None


def _run_plugins(arguments: list[str]) -> None:
    usage = f"usage: asr plugins\n{COMMANDS['plugins']}; it takes no options."
    if "-h" in arguments or "--help" in arguments:
        print(usage)
    elif arguments:
        raise ConfigError(f"'{arguments[0]}': plugins takes no options.\n{usage}")
    else:
        from asr.commands import list_plugins

        list_plugins()


def _run_info(arguments: list[str]) -> None:
    usage = "usage: asr info CHECKPOINT\na run's folder, a bundle (folder, zip or hf://user/name), a .ckpt or an .onnx"
    if "-h" in arguments or "--help" in arguments:
        print(usage)
    elif len(arguments) != 1:
        raise ConfigError(f"Which recognizer? Name one.\n{usage}")
    else:
        from asr.commands import info

        info(arguments[0].removeprefix("checkpoint="))


def _run_hydra(command: str, arguments: list[str]) -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a bug keeps its traceback
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    plugins.register()
    _register_resolvers()
    for problem in plugins.problems():
        print(f"warning: {problem}", file=sys.stderr)
    files, options = split_arguments(arguments, command in TAKES_WORDS)
    _refuse_shadowed(options)
    argv = sys.argv

    @hydra.main(config_path="pkg://asr.conf", config_name=command, version_base="1.3")
    def task(config: DictConfig) -> None:
        sys.argv = argv  # Lightning starts the other ranks by it
        _register_resolvers()  # anew, where a launcher runs this in a process of its own
        from asr import commands

        try:  # here, because Hydra adds to what leaves the task
            with _until_read():
                plain = _plain(config, command, options)
                getattr(commands, command)(plain, files) if files else getattr(commands, command)(plain)
        except AsrError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    sys.argv = [argv[0], *options]
    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, command, options)) from None
    except ValueError as error:  # some of Hydra's own
        if str(error).startswith("Config group override must be"):
            raise ConfigError(_explain_choice(options)) from None
        if not str(error).startswith("Only one of --"):  # flags
            raise
        raise ConfigError(str(error)) from None
    finally:
        sys.argv = argv


def _plain(config: Any, command: str, options: list[str]) -> dict[str, Any]:
    """The composed config as plain containers; a group of which nothing was chosen is `None`."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _refuse_multirun_on_devices(config)
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and command == "train" and not given("out", options):
        config.out = f"{config.out}/{hydra_config.job.num}"  # a folder for each run of the sweep
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, command, options)) from None
    if hydra_config.runtime.choices.get("experiment"):
        overrides = list(hydra_config.overrides.task)
        _leave_out_of_experiment(plain, command, overrides, hydra_config.runtime.choices["experiment"])
    _check_headers(plain, hydra_config.runtime.choices.get("experiment"))
    choices = hydra_config.runtime.choices.items()
    unchosen = [group for group, choice in choices if choice is None and "@" not in group]
    defaults = {str(key): value for key, value in compose(command).items_ex(resolve=False)}
    known = {*defaults, *(group.split("@")[-1].split(".")[0] for group, _ in choices)}
    for key in plain:
        if key not in known and f"${{{key}" not in OmegaConf.to_yaml(config):  # a value that others refer to is of use
            raise ConfigError(f"{key}: there is no such option. {near_matches(key, known)}")
    for key in ("format", "group_by"):  # names, also where they look like numbers
        if type(plain.get(key)) in (int, float):
            plain[key] = str(plain[key])
    for key, value in defaults.items():
        if key in plain and (key in NULLABLE or type(value) in (int, float, bool)):
            plugins.check_type(plain[key], NULLABLE.get(key, type(value)), key)
        if key in SINGLE and not isinstance(plain.get(key), str) and (value is not None or plain.get(key) is not None):
            raise ConfigError(f"{key}={plain.get(key)}: must be one, and neither a list nor null.")
        if key in LEAST and plain.get(key) is not None and plain[key] < LEAST[key]:
            raise ConfigError(f"{key}={plain[key]}: must be {LEAST[key]} or more.")
    # logger=[] leaves no key behind
    return {key: None for key in (*unchosen, *defaults) if not key.startswith("hydra")} | plain


def _check_headers(plain: dict[str, Any], experiment: str | None) -> None:
    """Refuse what a file of the user's own says without the header that puts it where it has an effect."""
    if experiment and "experiment" in plain:
        raise ConfigError(f"experiment={experiment}: its file has to begin with the line '# @package _global_'.")
    for group in SEVERAL:
        for name, part in (plain.get(group) or {}).items():
            if not isinstance(part, dict):
                raise ConfigError(
                    f"{group}.{name}={part}: is no component. A file of your own for {group}=[NAME] has to begin with "
                    f"the line '# @package {group}.NAME'."
                )


def _leave_out_of_experiment(plain: dict[str, Any], command: str, overrides: list[str], experiment: str) -> None:
    """What an experiment says to a component that the command line replaces, where the new one does not know it.

    What the new one knows stays the experiment's; both are printed.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    for group in (*plugins.COMPONENT_GROUPS, "callbacks", "logger", "lm_decoder"):
        chooses = "decoder@lm_decoder" if group == "lm_decoder" else group
        if not given(chooses, overrides) or not isinstance(plain.get(group), dict):
            continue
        choice = [word for word in overrides if word.lstrip("+").startswith((f"{chooses}=", f"{chooses}@"))]
        chosen: Any = OmegaConf.to_container(compose(command, choice)[group])
        keys = [word.lstrip("+").split("=")[0] for word in overrides]
        told = tuple(f"{key}." for key in keys if key.startswith(f"{group}."))
        several = group in SEVERAL  # each by its name
        for name, part in list(plain[group].items()):
            known = "_target_" in part if several else name in chosen
            if not known and not any(key.startswith(f"{group}.{name}.") for key in told):
                print(f"left out    {group}.{name}, which experiment={experiment} sets for its own {group}")
                del plain[group][name]
        before = dict(_leaves(chosen, group))
        kept = [
            f"{key}={value}"
            for key, value in _leaves(plain[group], group)
            if before.get(key, value) != value and "${" not in str(before[key]) and not f"{key}.".startswith(told)
        ]
        if kept:
            print(f"kept        {', '.join(kept)}, as experiment={experiment} says")


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """The keys of a nested config, with dots, and their values."""
    for name, value in node.items():
        yield from _leaves(value, f"{key}.{name}") if isinstance(value, dict) else [(f"{key}.{name}", value)]


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    from asr.training.folder import run_id

    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)


def _refuse_multirun_on_devices(config: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    trainer = config.get("trainer")
    if hydra_config.mode != RunMode.MULTIRUN or trainer is None:
        return
    launcher = str(hydra_config.launcher._target_)
    if "basic_launcher" in launcher and (
        str(trainer.get("devices", 1)) not in ("1", "[0]") or trainer.get("num_nodes", 1) != 1
    ):
        raise ConfigError(
            "-m with several devices would run the sweep on every rank. "
            "Start a job for each run (hydra/launcher=slurm, see the README), or say trainer.devices=1."
        )


def _explain(error: Exception, command: str, options: list[str]) -> str:
    """Hydra's message, with what to do about it."""
    from omegaconf.errors import MissingMandatoryValue

    text = str(error).strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{getattr(error, 'full_key', '')}: has to be given: {getattr(error, 'full_key', 'key')}=…"
    missing = re.search(r"(?:Could not find|In '[^']*': Could not find|Could not load) '([^']+)'", text)
    if missing and "/" in missing[1]:
        group, name = missing[1].rsplit("/", 1)
        if known := _config_names(group, options):
            return f"{group}={name}: there is no such config in the group '{group}'. {near_matches(name, known)}"
    unknown = re.search(r"Key '[^']+' is not in struct[\s\S]*?full_key: ([\w.]+)", text) or re.search(
        r"Could not override '([^']+)'", text
    )
    if unknown:
        return f"{unknown[1]}: there is no such option. {_near_key(unknown[1], command, options)}".rstrip()
    return text


def _explain_choice(options: list[str]) -> str:
    """What to write for a choice that is no name: `encoder=null`, `augment=3`."""
    for word in options:
        key, _, value = word.lstrip("+").partition("=")
        group, _, package = key.partition("@")
        known = _config_names(group, options)
        if known and value and value not in known and value[0] != "[":
            none = f"{package}=null" if package else f"{key}=[]" if group in SEVERAL else ""
            none = f" To choose none, write {none}." if none else ""
            return f"{word}: a choice is a name. There are: {', '.join(known)}.{none}"
    return "A choice is a name: GROUP=NAME."


def _refuse_shadowed(options: list[str]) -> None:
    """Hydra would pass over a config of `--config-dir` that has the name of an installed one, and not say so."""
    for folder in config_folders(options):
        for name, installed in plugins.config_files().items():
            own = Path(folder, name)
            if own.is_file() and not filecmp.cmp(own, installed, shallow=False):
                raise ConfigError(f"{own}: would never be read, as {installed} has the same name. Rename it.")


def _config_names(group: str, options: list[str]) -> list[str]:
    own = [path.stem for folder in config_folders(options) for path in Path(folder, group).glob("*.yaml")]
    return sorted({*plugins.config_names(group), *own})


def _near_key(key: str, command: str, options: list[str]) -> str:
    """What a mistyped key was likely meant to be, and how to add a key that a Lightning class takes."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    choices = [word for word in options if OVERRIDE.match(word) and "." not in word.split("=")[0]]
    if folders := config_folders(options):
        paths = (literal(f"file://{os.path.abspath(folder)}") for folder in folders)
        choices.append(f"hydra.searchpath=[{','.join(paths)}]")
    with initialize_config_module("asr.conf", version_base="1.3"):
        try:
            config: Any = compose(command, overrides=choices)
        except (HydraException, OmegaConfBaseException):  # the mistyped key is among them
            config = compose(command)
    *parents, last = key.split(".")
    node = config
    for part in parents:
        node = node.get(part) if hasattr(node, "get") else None
    if key in ("experiment", "+experiment"):
        return f"Write +experiment=…, with a plus. There are: {', '.join(plugins.config_names('experiment'))}."
    if parents and config.get(parents[0]) is None and (known := _config_names(parents[0], options)):
        return f"No {parents[0]} is chosen: add {parents[0]}=NAME. There are: {', '.join(known)}."
    hint = near_matches(last, map(str, node)) if hasattr(node, "keys") else ""
    if key in ("trainer.max_epochs", "trainer.max_steps"):
        return f"Say {last.replace('max_epochs', 'epochs')}=… instead."
    if parents and parents[0] in ("trainer", "callbacks", "logger", "optimizer"):
        hint += f" To pass {last} on to the class, write +{key}=…"
    return hint
