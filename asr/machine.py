"""What this process takes of the machine: its processors, and memory, which is given back when it is free."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 16 << 20


def processors() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_kernels(alone: bool) -> None:
    """Say to PyTorch's libraries, before they are loaded, how to wait and what to keep; what the user has set is left.

    Args:
        alone: this process has the cores to itself, mostly.
    """
    # libgomp's threads spin while they wait: long, and two beside another busy process are twice as slow as one; not at
    # all, and two on cores of their own take 1.4 times as long for a training step
    if not alone:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    elif "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN keeps kernels for the last 1,024 shapes: gigabytes, where no two batches are of one length
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def give_back() -> None:
    """Return what was freed: glibc keeps it, in fragments, of which hours of audio leave many hundred megabytes."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def return_large_blocks() -> None:
    """From now on, return blocks of 16 MiB as soon as they are freed.

    By default, glibc learns from them to keep such blocks. This halves what long recordings take beyond the model, for
    a tenth of the time.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.malloc_trim and libc.mallopt else None
    except (OSError, AttributeError, TypeError):  # another C library
        return None
