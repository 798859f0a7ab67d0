"""The words of a command line, as Hydra takes them: file names stay what they are."""

from __future__ import annotations

import os
import re
from itertools import pairwise

from asr.data.containers import STDIN
from asr.errors import ConfigError

MODEL_KEYS = ("lm_decoder.lm", "lm_decoder.label_lm", "lm_decoder.beam.lm", "lm_decoder.beam.label_lm")
"""Whose values are paths, or orders of n-gram models: 3."""
PATH_KEYS = (
    "checkpoint", "checkpoints", "manifest", "manifests", "out", "compare", "resume", "init_from", "run", "runs",
    "data.train", "data.validation", "data.test", "corpus.root", "corpus.path", "corpus.audio_root", "audio", "json",
    "transcript", "decoder.lm", "decoder.label_lm", "decoder.beam.lm", "decoder.beam.label_lm",
    "decoder.label_prior", "decoder.beam.label_prior", "lm_decoder.label_prior", "lm_decoder.beam.label_prior",
    "decoder.lexicon", "lm_decoder.lexicon", "augment.path", "objective.phones", "sentences", "lm_path", "model",
    "train", "test", "arpa", "output", "shards", *MODEL_KEYS,
)  # fmt: skip
"""Keys whose values are taken literally: paths, and the transcript to align."""
FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion",
    "-sc", "--info", "-i",
)  # fmt: skip
"""Hydra's."""
FLAGS_WITH_VALUE = (
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c",
    "--experimental-rerun",
)  # fmt: skip
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*=")


def split_arguments(arguments: list[str], takes_files: bool) -> tuple[list[str], list[str]]:
    """Tell audio files from options, and quote values that Hydra's grammar would refuse or take apart.

    A word is a file if it exists on disk, or is neither an option (`-x`, `~key`) nor a `key=value`.

    Returns:
        files, and options as Hydra takes them.
    """
    files, flags, options = [], [], []
    previous = ""
    for word in arguments:
        if previous in ("--info", "-i") and word not in INFO:
            flags.append("all")
        if previous in FLAGS_WITH_VALUE or (previous in ("--info", "-i") and word in INFO):
            flags.append(word)
        elif takes_files and (word == STDIN or os.path.exists(word)):
            files.append(word)
        elif word.startswith("-"):
            if word.split("=")[0] not in (*FLAGS, *FLAGS_WITH_VALUE):
                key = word.lstrip("-").split("=")[0]
                raise ConfigError(f"{word}: there is no such flag. Options have no dashes: {key}=…")
            flags.append(word)
        elif word.startswith("~"):
            options.append(word)
        elif OVERRIDE.match(word):
            options.append(quote(word))
        elif takes_files:
            files.append(word)
        else:
            raise ConfigError(f"'{word}' is neither an option (key=value) nor a flag (--name).")
        previous = word
    if previous in ("--info", "-i"):
        flags.append("all")
    return files, flags + options  # argparse takes the options only when they stand together


def quote(override: str) -> str:
    """Quote the value of a `key=value` if it is a path, or if Hydra's grammar cannot read it as it stands.

    >>> quote("checkpoint=runs/a, b/epoch=3-step=9.ckpt")
    "checkpoint='runs/a, b/epoch=3-step=9.ckpt'"
    >>> quote("transcript=[noise] yes")
    "transcript='[noise] yes'"
    """
    key, value = override.split("=", 1)
    name = re.sub(r"^corpus\.parts\.\w+", "corpus", key.lstrip("+"))
    name = re.sub(r"^augment\.\w+\.path$", "augment.path", name)
    is_path = name in PATH_KEYS
    if is_path and key != "transcript" and value.startswith("~/") and not os.path.exists(value):
        value = os.path.expanduser(value)  # as shells do in some places only
    if name in MODEL_KEYS and re.fullmatch(r"(\d+|null)(,(\d+|null))*", value):  # a sweep's, with commas
        return override
    if key == "transcript" and value[:1] in ("[", "{"):  # a text, never a list
        return f"{key}={literal(value)}"
    if value in ("", "null") or ((not is_path or value[0] in "'\"[{") and _parses(override)):
        return override
    if is_path and value[0] == "[" and value[-1] == "]":  # a list of paths
        return f"{key}=[{','.join(literal(path.strip()) for path in value[1:-1].split(','))}]"
    return f"{key}={literal(value)}"


def literal(value: str) -> str:
    """A value in quotes, which Hydra takes as it is."""
    # a backslash is an ordinary character to Hydra, except ahead of a quote
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and "\\'"), value) + "'"


def given(key: str, options: list[str]) -> bool:
    """Whether the options choose this key or group."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in options)


def config_folders(options: list[str]) -> list[str]:
    """What is given by `--config-dir`."""
    named = [word for flag, word in pairwise(options) if flag in ("--config-dir", "-cd")]
    return named + [word.split("=", 1)[1] for word in options if word.startswith(("--config-dir=", "-cd="))]


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
