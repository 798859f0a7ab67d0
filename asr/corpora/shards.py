"""A prepared corpus as tar shards: the same utterances in the same order, in few large files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from asr.corpora.base import REPORT, Report, explained, in_order, progress_bar, workers
from asr.data.audio import open_audio, read_samples, resample
from asr.data.index import ManifestIndex
from asr.data.manifest import format_line, write_manifest
from asr.data.remote import beside, fetch, is_url
from asr.data.shards import ShardWriter, parse_member, read_member
from asr.errors import ConfigError, DataError
from asr.types import Utterance

FORMATS = ("flac", "opus")
SUMS = "SHA256SUMS"
COMPRESSED = {"FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}
"""Suffixes of what is compressed already, by soundfile's names of formats."""
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
INTEGERS = dict.fromkeys(("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"), ("int16", "PCM_16"))
INTEGERS["PCM_24"] = ("int32", "PCM_24")
"""How the samples of a file are read, and stored in FLAC; others are stored with 24 bits, or what is louder as WAV."""
FLAC_CHANNELS = 8


def check_shards(folder: Path, format: str) -> None:
    """Refuse what cannot be written, before a corpus is read for it."""
    if format not in FORMATS:
        raise ConfigError(f"shard_format={format}: must be {' or '.join(FORMATS)}.")
    if folder.exists():
        raise DataError(f"{folder}: is there already. Nothing was written. Take another shards=, or delete it.")


def write_shards(report: Report, folder: str | Path, size: float = 500, format: str = "flac") -> Report:
    """Write the utterances of all manifests into tar shards: the whole folder or nothing.

    Args:
        report: of the corpus, as it was prepared.
        folder: is made; holds a folder of shards and a manifest for each split, the report, and `SHA256SUMS`, which
            `sha256sum -c` checks.
        size: of a shard, in MB.
        format: "flac" keeps integer samples of up to 24 bits as they are; "opus" has a quarter of its size.

    Returns:
        the report, with the manifests of the shards.

    Raises:
        DataError: the folder is there already, or audio cannot be read.
    """
    folder = Path(os.path.abspath(folder))
    check_shards(folder, format)
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            sums: dict[str, str] = {}
            with progress_bar() as progress, ThreadPoolExecutor(workers()) as pool:
                for split, path in report.manifests.items():
                    index = ManifestIndex(path)
                    shown = progress.track(index, len(index), description=f"{split} shards")
                    encoded = in_order(pool, partial(_encode, format=format), shown)
                    writer = ShardWriter(staging / split, round(size * 1e6))
                    write_manifest(staging / f"{split}.jsonl", _add_all(writer, encoded))
                    writer.close()
                    sums |= {f"{split}/{name}": found for name, found in writer.sums.items()}
            manifests = {split: staging / f"{split}.jsonl" for split in report.manifests}
            found = Report(report.corpus, manifests, report.kept, report.dropped)
            (staging / REPORT).write_text(found.dump(staging), encoding="utf-8")
            for path in (*manifests.values(), staging / REPORT):
                with path.open("rb") as file:
                    sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            (staging / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sums), encoding="utf-8")
            staging.chmod(0o777 & ~_umask())
            os.rename(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Report.load(folder)


def find_shards(folder: str) -> dict[str, str] | None:
    """The manifests of a folder or URL that `write_shards` wrote, by split; `None` where a folder holds no shards.

    Raises:
        DataError: there is nothing at the URL.
    """
    if not is_url(folder):
        found = (Path(folder) / SUMS).is_file()
        return {split: str(path) for split, path in Report.load(folder).manifests.items()} if found else None
    url = f"{folder.rstrip('/')}/{REPORT}"
    try:
        copy = Path(os.path.abspath(fetch(url, changing=True)))
    except FileNotFoundError:
        raise DataError(f"{url}: no such report. Write shards with scripts/prepare.py … shards=DIR.") from None
    manifests = Report.load(copy.parent).manifests
    return {split: beside(url, path.relative_to(copy.parent).as_posix()) for split, path in manifests.items()}


def _add_all(writer: ShardWriter, encoded: Iterator[tuple[Utterance, bytes, str]]) -> Iterator[Utterance]:
    for utterance, audio, suffix in encoded:
        row = json.loads(format_line(utterance, writer.folder))
        del row["audio_filepath"]
        yield replace(utterance, audio_filepath=str(writer.add(audio, suffix, row)))


def _encode(utterance: Utterance, format: str) -> tuple[Utterance, bytes, str]:
    """The audio of an utterance alone, and the suffix of its format."""
    path, rest = utterance.audio_filepath, replace(utterance, offset=0.0)
    with open_audio(path) as file:
        rate, frames = file.samplerate, file.frames
        suffix = COMPRESSED.get(file.format) if format == "flac" or file.format != "FLAC" else None
        whole = utterance.duration is None or round(utterance.duration * rate) >= frames
        if suffix and whole and not utterance.offset:
            return rest, _content(path), suffix
        kind, stored = INTEGERS.get(file.subtype, ("float32", "PCM_24")) if format == "flac" else ("float32", "OPUS")
        blocks = list(read_samples(file, path, utterance.offset, utterance.duration, kind))
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if format == "opus":
        return rest, _opus(samples, rate), ".ogg"
    if samples.shape[1] > FLAC_CHANNELS or (kind == "float32" and np.abs(samples).max(initial=0) > 1):
        return rest, _write(samples, rate, "WAV", "FLOAT" if kind == "float32" else stored), ".wav"
    return rest, _write(samples, rate, "FLAC", stored), ".flac"


def _opus(samples: np.ndarray, rate: int) -> bytes:
    """Opus in OGG; rates that it does not have are resampled to the next."""
    wanted = next((known for known in OPUS_RATES if known >= rate), OPUS_RATES[-1])
    if wanted != rate:
        samples = np.stack([resample(np.ascontiguousarray(channel), rate, wanted) for channel in samples.T], axis=1)
    return _write(samples, wanted, "OGG", "OPUS")


def _write(samples: np.ndarray, rate: int, format: str, subtype: str) -> bytes:
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=format, subtype=subtype)
    return content.getvalue()


def _content(path: str) -> bytes:
    member = parse_member(path)
    return read_member(member).getvalue() if member else Path(path).read_bytes()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
