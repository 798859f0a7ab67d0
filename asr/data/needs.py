"""How many emission frames transcripts need: of a large manifest counted once, and kept beside it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from asr.data.index import ManifestIndex
from asr.data.parallel import in_processes
from asr.errors import DataError

KEPT_FROM = 1 << 20
"""Utterances of a manifest from which on the counts are kept: fewer are counted in less than a minute."""
PART = 1 << 16
"""Utterances that a process counts at a time."""

Encode = Callable[[str], list[int]]


def frames_needed(text: str, encode: Encode) -> int:
    """`least_frames` of a transcript's labels.

    0 where the transcript is missing, has no label, or has a character that has none.
    """
    try:
        labels = encode(text)
    except DataError:
        return 0
    return least_frames(labels)


def least_frames(labels: Sequence[int]) -> int:
    """The fewest frames that CTC needs for labels: one for each, and a blank between equal ones."""
    return len(labels) + sum(map(operator.eq, labels, labels[1:]))


def all_frames_needed(manifests: Sequence[ManifestIndex], encode: Encode, name: str) -> np.ndarray:
    """(U,) `frames_needed` by the utterances of several manifests.

    Args:
        manifests: one after the other.
        encode: a transcript → label ids; DataError where it has a character that has no label.
        name: of what `encode` does: counts are kept under it. Empty: they are not kept.
    """
    found = []
    for manifest in manifests:
        count = partial(_count_all, manifest, encode)
        keep = name and len(manifest) >= KEPT_FROM
        found.append(manifest.keep(f"{name}.frames", np.dtype("u4"), count) if keep else count())
    return found[0] if len(found) == 1 else np.concatenate(found)


def _count_all(manifest: ManifestIndex, encode: Encode) -> np.ndarray:
    starts = range(0, len(manifest), PART)
    return np.concatenate(list(in_processes(partial(_count, manifest, encode), starts)))


def _count(manifest: ManifestIndex, encode: Encode, start: int) -> np.ndarray:
    stop = min(start + PART, len(manifest))
    counts = [frames_needed(manifest.text(k), encode) for k in range(start, stop)]
    return np.array(counts, np.uint32)
