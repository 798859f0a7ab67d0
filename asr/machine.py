"""What this process takes of the machine: processors, devices, and memory, which is given back when it is free."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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
    # large tensors in huge pages, where the system leaves that to the program: they are allocated anew with each step
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def choose_for_trainer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a Lightning trainer → the same, with this machine's choice for an accelerator or precision of "auto".

    That is CUDA if there is any, else the CPU (Lightning's own choice may be one that lacks a kernel, such as MPS); and
    bf16-mixed where the device multiplies bfloat16 faster than float32, else 32-true.
    """
    import torch  # set up before it is loaded, see above

    chosen = dict(options)
    if chosen.get("accelerator") == "auto":
        chosen["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.get("precision") == "auto":
        if chosen.get("accelerator") in ("cuda", "gpu"):
            fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            processor = torch.cpu.get_capabilities()
            known = any(processor.get(kind) for kind in ("avx512_bf16", "amx_bf16"))
            fast = known and product_seconds(torch.bfloat16) < 0.8 * product_seconds(torch.float32)
        chosen["precision"] = "bf16-mixed" if fast else "32-true"
    return chosen


def product_seconds(dtype: torch.dtype) -> float:
    """The least time that the CPU takes for a product of matrices.

    Some processors have instructions for bfloat16 that are slower than those for float32 (Intel's without AMX, as some
    virtual machines show them: 81 for 150 GFLOPS), others have faster ones (AMD's), and none of them says which.
    """
    import torch

    matrix, seconds = torch.ones(512, 512, dtype=dtype), []
    for _ in range(8):  # the first ones make the kernel
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
