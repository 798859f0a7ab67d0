"""The manifests of a training: those given, or those of its corpus, which is prepared if it was not yet."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from asr.corpora.base import REPORT, Report
from asr.corpora.shards import find_shards
from asr.errors import ConfigError, DataError
from asr.plugins import instantiate
from asr.training.folder import is_main_process

SPLITS = {
    "train": re.compile(r"train(ing)?([^a-z].*)?", re.IGNORECASE),
    "validation": re.compile(r"(val(id(ation)?)?|dev(elopment)?)([^a-z].*)?", re.IGNORECASE),
    "test": re.compile(r"test(ing)?([^a-z].*)?", re.IGNORECASE),
}
"""What a corpus' splits are called, such as `dev-clean`, by the key of `data` that they go to."""
POLL = 3.0
"""Seconds between two looks of the other ranks at what rank 0 has prepared."""


def prepare_manifests(config: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """The `data` config with its manifests filled in from shards or the corpus, where it names none.

    Raises:
        ConfigError: neither manifests nor a corpus are given.
        DataError: the corpus cannot be prepared.
    """
    data = dict(config["data"])
    if data["train"] is not None:
        return data
    shards = find_shards(config["manifests"])
    if shards is None and config["corpus"] is None:
        raise ConfigError(
            "There is nothing to train on. Give manifests (data.train=FILE.jsonl), a corpus (corpus=NAME, see "
            "`asr plugins`), or an experiment that has one (+experiment=demo)."
        )
    manifests = shards or _prepare(config, Path(config["manifests"]), console).manifests
    for key, names in SPLITS.items():
        found = [str(path) for split, path in manifests.items() if names.fullmatch(split)]
        if data[key] is None and found:
            data[key] = found
    unused = [split for split in manifests if not any(names.fullmatch(split) for names in SPLITS.values())]
    if unused:
        console.print(
            f"not used    {', '.join(unused)}: name them by data.train, data.validation or data.test", markup=False
        )
    if data["train"] is None:
        raise DataError(f"The corpus has no split to train on, only {', '.join(manifests)}. Name one: data.train=FILE.")
    return data


def _prepare(config: Mapping[str, Any], out: Path, console: Console) -> Report:
    if not is_main_process():
        return _wait_for(out)
    failed = _failure_mark(out)
    with suppress(OSError):
        failed.unlink()
    report = _current(out)
    corpus = instantiate(config["corpus"], "corpus")
    if report is None or (hasattr(corpus, "arguments") and report.corpus != corpus.arguments()):
        console.print(f"preparing   {config['corpus']['_target_']} → {out}", markup=False)
        try:
            report = corpus.prepare(out)
        except BaseException:
            with suppress(OSError):
                failed.parent.mkdir(parents=True, exist_ok=True)
                failed.write_text(_launch())  # or the other ranks wait for ever
            raise
        console.print(report.table())
    else:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime((out / REPORT).stat().st_mtime))
        console.print(f"manifests   {out}, prepared {made}; delete the folder to prepare it anew", markup=False)
    return report


def _current(out: Path) -> Report | None:
    if not (out / REPORT).is_file():
        return None
    report = Report.load(out)
    return report if all(path.is_file() for path in report.manifests.values()) else None


def _launch() -> str:
    """What tells the processes that were started together from those of other times, as far as their launcher says."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    torchrun = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    return " ".join(os.environ.get(name, "-") for name in (*slurm, *torchrun))


def _failure_mark(out: Path) -> Path:
    return out.parent / f".{out.name}.failed"


def _wait_for(out: Path) -> Report:
    """On the other ranks: the report, as soon as rank 0 has written it."""
    while True:
        try:
            if (report := _current(out)) is not None:
                return report
        except (DataError, json.JSONDecodeError):
            pass
        time.sleep(POLL)  # in which rank 0 takes the mark of an earlier launch away that has the same name
        with suppress(OSError):
            if _failure_mark(out).read_text() == _launch():
                raise DataError(f"{out}: the corpus could not be prepared; rank 0 says why.")
