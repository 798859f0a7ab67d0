"""What commands take of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asr import machine
from asr.machine import choose_for_trainer

KERNELS = """
import asr.cli
asr.cli.run("plugins", ["--help"])
import torch

from asr.machine import choose_for_trainer
from asr.encoders.recurrent import Blstm
encoder = Blstm(4, layers=1, width=4, subsampling="stack")
for frames in [40, *range(44, 444, 4), 40]:
    print(f"{frames} frames", flush=True)
    encoder(torch.zeros(1, frames, 4), torch.tensor([frames]))[0].sum().backward()
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(("capacity", "forgotten"), [({}, True), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, False)])
def test_kernels_of_other_shapes_are_forgotten(capacity, forgotten, monkeypatch):
    """oneDNN's cache stays small, unless the user says otherwise: with its own 1,024 shapes it takes gigabytes."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)  # which commands of other tests have set
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_create"} | capacity
    command = [sys.executable, "-c", KERNELS]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    first, *_, again = said.split(" frames\n")[1:]
    assert "cache_miss" in first
    assert ("cache_miss" in again) == forgotten


WAITING = """
import sys
import asr.cli
try:
    asr.cli.run(sys.argv[1], ["--help"])
finally:
    import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's threads are not those of libgomp")
@pytest.mark.parametrize(
    ("command", "given", "policy", "spins"),
    [
        ("train", {}, "PASSIVE", "10000"),
        ("transcribe", {}, "PASSIVE", "0"),
        ("train", {"OMP_WAIT_POLICY": "passive"}, "PASSIVE", "0"),
        ("train", {"GOMP_SPINCOUNT": "70"}, "PASSIVE", "70"),
        ("transcribe", {"OMP_WAIT_POLICY": "active"}, "ACTIVE", "30000000000"),
    ],
)
def test_threads_that_wait_spin_a_little_in_a_training_only(command, given, policy, spins, monkeypatch):
    """As libgomp itself says; what the user has set is left."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # which commands of other tests have set
        monkeypatch.delenv(name, raising=False)
    environment = os.environ | {"OMP_DISPLAY_ENV": "verbose"} | given
    arguments = [sys.executable, "-c", WAITING, command]
    said = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in said and f"GOMP_SPINCOUNT = '{spins}'" in said


MAPPED = """
import sys
import asr.cli
asr.cli.run("plugins", ["--help"])
import torch
kept = torch.zeros(16 << 20)
print(kept.data_ptr(), open("/proc/self/smaps").read(), sep="\\n", file=sys.stderr)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages"
)
@pytest.mark.parametrize(("given", "wanted"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_large_tensors_ask_for_huge_pages(given, wanted, monkeypatch):
    """In what the kernel notes about the memory of a tensor ("hg"), unless the user says otherwise."""
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)  # which commands of other tests have set
    command = [sys.executable, "-c", MAPPED]
    said = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True).stderr
    address, *lines = said.splitlines()
    inside = False
    for line in lines:
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= int(address) + (32 << 20) < end
        elif inside and first == "VmFlags:":
            assert ("hg" in line.split()) == wanted
            return
    pytest.fail("the tensor is not in the map of the process")


@pytest.mark.parametrize(
    ("accelerator", "cuda", "has", "seconds", "chosen"),
    [
        ("auto", False, {"avx512_bf16": True}, 0.5, ("cpu", "bf16-mixed")),
        ("auto", False, {"amx_bf16": True, "avx512_bf16": False}, 0.5, ("cpu", "bf16-mixed")),
        ("auto", False, {"avx512_bf16": True}, 1.9, ("cpu", "32-true")),
        ("cpu", True, {"avx512_f": True, "avx512_bf16": False}, 0.5, ("cpu", "32-true")),
        ("cpu", True, {"architecture": "arm64"}, 0.5, ("cpu", "32-true")),
        ("auto", True, {"bf16": True}, 1.9, ("cuda", "bf16-mixed")),
        ("gpu", True, {"bf16": False, "avx512_bf16": True}, 0.5, ("gpu", "32-true")),
    ],
)
def test_half_precision_where_the_device_is_faster_with_it(accelerator, cuda, has, seconds, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has["bf16"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(machine, "product_seconds", {torch.bfloat16: seconds, torch.float32: 1.0}.get)
    options = choose_for_trainer({"accelerator": accelerator, "precision": "auto", "devices": 1})
    assert options == {"accelerator": chosen[0], "precision": chosen[1], "devices": 1}


def test_a_choice_that_is_made_stays():
    options = {"accelerator": "gpu", "precision": "16-mixed"}
    assert choose_for_trainer(options) == options
