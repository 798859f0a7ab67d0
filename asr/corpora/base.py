"""What all corpora share: checked utterances go into manifests, what is dropped is counted by reason and listed."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from asr.corpora.check import Dropped, check_utterance
from asr.data.manifest import format_line, open_rows
from asr.errors import DataError
from asr.types import MANIFEST_KEYS, Utterance

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

Splits = Mapping[str, Iterable[Utterance | Dropped]]
"""What a corpus holds, by split; lazy, so that nothing is read before the output folder is found to be free."""

REPORT, DROPPED = "report.json", "dropped.jsonl"
TRANSPORT_OPTIONS = ("download", "base_url", "checksum", "checksums")
"""Options that say how a corpus gets onto the disk, not what is in its manifests."""


@dataclass(frozen=True)
class Tally:
    """How much there is of something."""

    utterances: int
    hours: float


@dataclass(frozen=True)
class Report:
    """What was kept of a corpus, and what was dropped for which reason."""

    corpus: Mapping[str, Any]
    """The corpus and its arguments."""
    manifests: Mapping[str, Path]
    """Where the manifest of each split lies."""
    kept: Mapping[str, Tally]
    """By split."""
    dropped: Mapping[str, Mapping[str, Tally]]
    """By split and reason. The utterances themselves are listed in `dropped.jsonl`."""

    @classmethod
    def load(cls, out: str | Path) -> Report:
        """Read the `report.json` of a prepared corpus."""
        path = Path(os.path.abspath(out)) / REPORT
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                corpus=stored["corpus"],
                manifests={split: path.parent / name for split, name in stored["manifests"].items()},
                kept={split: Tally(**tally) for split, tally in stored["kept"].items()},
                dropped={s: {why: Tally(**t) for why, t in found.items()} for s, found in stored["dropped"].items()},
            )
        except FileNotFoundError:
            raise DataError(f"{path}: no such report. Make it with scripts/prepare.py.") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: not a report of scripts/prepare.py. Take another out=, or delete it.") from None

    def dump(self, out: Path) -> str:
        """As JSON, for the folder `out`, in or below which the manifests lie."""
        stored = {
            "corpus": dict(self.corpus),
            "manifests": {split: path.relative_to(out).as_posix() for split, path in self.manifests.items()},
            "kept": {split: asdict(tally) for split, tally in self.kept.items()},
            "dropped": {s: {why: asdict(t) for why, t in reasons.items()} for s, reasons in self.dropped.items()},
        }
        return json.dumps(stored, ensure_ascii=False, indent=2) + "\n"

    def table(self) -> Table:
        """Utterances and hours kept and dropped, for rich to print."""
        from rich.table import Table

        table = Table("split", "", box=None, pad_edge=False)
        for name in ("utterances", "hours"):
            table.add_column(name, justify="right")
        for split, kept in self.kept.items():
            table.add_row(split, "kept", f"{kept.utterances:,}", f"{kept.hours:.2f}")
            for reason, tally in self.dropped[split].items():
                table.add_row("", f"dropped: {reason}", f"{tally.utterances:,}", f"{tally.hours:.2f}")
        return table


@dataclass(kw_only=True)
class Corpus(ABC):
    """A corpus on disk. A subclass says what its splits hold; the constructor's arguments say where it lies."""

    min_duration: float = 0.1
    """Seconds; shorter utterances are dropped."""
    max_duration: float | None = None
    """Seconds; longer utterances are dropped."""

    @abstractmethod
    def utterances(self, out: Path) -> Splits:
        """The utterances of each split, as the corpus names them; converted audio goes below `out/audio`."""

    def prepare(self, out: str | Path) -> Report:
        """Write a manifest per split, `report.json` and `dropped.jsonl` to the folder `out`.

        Raises:
            DataError: the corpus is not where it should be, is damaged, or `out` holds something else.
        """
        out = Path(os.path.abspath(out))
        check_out(self.arguments(), out)
        return write_corpus(self.arguments(), self.utterances(out), out, self.min_duration, self.max_duration)

    def arguments(self) -> dict[str, Any]:
        """The corpus and its arguments, as the report keeps them: plain values, absolute paths."""
        found: dict[str, Any] = {"_target_": f"{type(self).__module__}.{type(self).__qualname__}"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("root", "path", "audio_root") and isinstance(value, (str, Path)):
                value = os.path.abspath(value)
            if field.name not in TRANSPORT_OPTIONS:
                found[field.name] = value
        return json.loads(json.dumps(found, default=str))


def write_corpus(
    corpus: Mapping[str, Any],
    splits: Splits,
    out: str | Path,
    min_duration: float = 0.1,
    max_duration: float | None = None,
) -> Report:
    """Check every utterance's audio and text and write the manifests and the report, all or nothing.

    Args:
        corpus: the corpus and its arguments, for the report; JSON values.
        splits: utterances by split, in the manifest's order; `Dropped` ones are only counted and listed.
        out: the folder to write to.
        min_duration: seconds.
        max_duration: seconds.

    Raises:
        DataError: `out` holds manifests of another corpus, ids occur twice, or nothing of a split can be kept.
    """
    out = Path(os.path.abspath(out))
    check_out(corpus, out)
    if not splits:
        raise DataError("The corpus has no splits, so there is nothing to write.")
    for split in splits:
        if not re.fullmatch(r"\w[\w.-]*", split) or f"{split}.jsonl" == DROPPED:
            raise DataError(f"'{split}' cannot name a split, because the manifest is named after it. Rename it.")
    check = partial(check_utterance, min_duration=min_duration, max_duration=max_duration)
    kept, dropped = {}, {}
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as folder, progress_bar() as progress:
            staging = Path(folder)
            with open_rows(staging / DROPPED) as log, ThreadPoolExecutor(workers()) as pool:
                for split, utterances in splits.items():
                    total = len(utterances) if isinstance(utterances, Sized) else None
                    shown = progress.track(utterances, total, description=split)
                    with open_rows(staging / f"{split}.jsonl") as manifest:
                        results = in_order(pool, check, shown)
                        kept[split], dropped[split] = _write_split(split, results, manifest, log, out)
            report = Report(corpus, {split: out / f"{split}.jsonl" for split in splits}, kept, dropped)
            (staging / REPORT).write_text(report.dump(out), encoding="utf-8")
            stale = Report.load(out).manifests.values() if (out / REPORT).exists() else ()
            for name in (REPORT, DROPPED, *(path.name for path in report.manifests.values())):
                os.replace(staging / name, out / name)
            for path in set(stale) - set(report.manifests.values()):
                path.unlink(missing_ok=True)
    return report


def _write_split(
    split: str, results: Iterable[Utterance | Dropped], manifest: TextIO, log: TextIO, out: Path
) -> tuple[Tally, dict[str, Tally]]:
    count: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    examples: dict[str, Dropped] = {}
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for result in results:
        reason = result.reason if isinstance(result, Dropped) else ""
        count[reason] += 1
        seconds[reason] += result.duration or 0.0
        if isinstance(result, Dropped):
            examples.setdefault(reason, result)
            row = {"split": split, "id": result.id, "audio_filepath": result.audio_filepath, "reason": reason}
            log.write(json.dumps(row | {"detail": result.detail}, ensure_ascii=False) + "\n")
        else:
            key = result.id or f"{result.audio_filepath}@{result.offset}"
            if key in seen:
                repeated[key] = None
            seen.add(key)
            manifest.write(format_line(result, out) + "\n")
    if repeated:
        some = ", ".join(list(repeated)[:5]) + (f" and {len(repeated) - 5} more" if len(repeated) > 5 else "")
        raise DataError(f"{split}: ids that occur more than once: {some}. Ids must be unique; rename or remove them.")
    if not count[""]:
        reasons = [f"{count[why]} {why} (such as {_where(drop)})" for why, drop in examples.items()]
        why = "; ".join(reasons) or "the corpus lists none"
        raise DataError(f"{split}: no utterance can be kept: {why}.")
    tallies = {reason: Tally(count[reason], seconds[reason] / 3600) for reason in ("", *examples)}
    return tallies.pop(""), tallies


def _where(drop: Dropped) -> str:
    return ": ".join(part for part in (drop.audio_filepath or drop.id, drop.detail) if part)


def check_out(corpus: Mapping[str, Any], out: str | Path) -> None:
    """Refuse to write over manifests that were made from another corpus, with other arguments, or by other means."""
    out = Path(os.path.abspath(out))
    nothing = "Nothing was written. Take another out= (in a training: manifests=)"
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file, but a folder is needed. Take another out=.")
    if (out / REPORT).exists():
        stored = dict(Report.load(out).corpus)
        given = json.loads(json.dumps(dict(corpus), default=str))
        keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
        if keys:
            other = ", ".join(f"{key}={stored.get(key)} (now {given.get(key)})" for key in keys)
            raise DataError(f"{out}: holds manifests made from other arguments: {other}. {nothing}, or delete it.")
    elif found := sorted(out.glob("*.jsonl")):
        raise DataError(f"{out}: holds {found[0].name}, which scripts/prepare.py did not make. {nothing}.")


@contextmanager
def explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR):
            raise
        where = error.filename or out
        raise DataError(f"{where}: {error.strerror}. Check permissions and disk, or take another out=.") from None


def in_order(pool: ThreadPoolExecutor, act: Callable, items: Iterable) -> Iterator[Any]:
    """Map with threads, in order, a few items ahead only."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(act, item))
        if len(pending) >= 8 * workers():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def workers() -> int:
    return min(16, (os.cpu_count() or 1) + 2)


def progress_bar(*columns: Any) -> Progress:
    """A progress bar on stderr, shown only where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = columns or (MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        TextColumn("{task.description}"), BarColumn(), *columns,
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def require_path(path: str | Path | None, key: str, expected: str) -> Path:
    """The path that a key gives, if there is something.

    Raises:
        DataError: the key is not set, or names nothing.
    """
    kind = "FILE" if key.endswith("path") else "DIR"
    if path is None:
        raise DataError(f"{key} is not set: {key}={kind} names {expected}.")
    found = Path(os.path.abspath(os.path.expanduser(path)))
    if not found.exists():
        raise DataError(f"{key}={path}: no such {'file' if kind == 'FILE' else 'folder'}. Expected: {expected}.")
    return found


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file (with or without byte order mark) that are not blank, with their numbers."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, near line {number + 1}: not UTF-8 ({error.reason}). Convert the file.") from None


def extra_fields(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Values that a manifest keeps beside its own keys; one that has such a key's name gets a prefix."""
    return {f"{prefix}_{k}" if k in MANIFEST_KEYS else k: v for k, v in values.items() if v not in ("", None)}
