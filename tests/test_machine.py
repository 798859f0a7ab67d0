"""What commands take of the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

KERNELS = """
import asr.cli
asr.cli.run("plugins", ["--help"])
import torch
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
