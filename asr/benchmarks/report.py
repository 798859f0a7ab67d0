"""What a benchmark found: numbers with their units, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import resource
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asr.errors import ConfigError


@dataclass(frozen=True)
class Measurement:
    """One number."""

    name: str
    """Its key in the JSON file."""
    what: str
    value: float
    unit: str
    target: float | None = None
    """The most that it should be."""
    note: str = ""
    shown: bool = True
    """Whether it has a line in the table; it always stands in the JSON file."""

    def format(self) -> str:
        digits = 0 if abs(self.value) >= 100 else 1 if abs(self.value) >= 10 else 2 if abs(self.value) >= 0.1 else 4
        return f"{self.value:,.{digits}f}"


def check_report(out: str | None) -> None:
    """Raise a ConfigError if there is a file of that name that no benchmark has written."""
    if out and Path(out).exists():
        try:
            ours = "benchmark" in json.loads(Path(out).read_text("utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise ConfigError(f"json={out}: the file is there, and not a benchmark's. Take another name.")


def report(title: str, measurements: list[Measurement], setting: dict[str, Any], out: str | None) -> None:
    """Print the table; write it and the setting to `out`."""
    console = Console(markup=False)
    table = Table("", "", "unit", "target", "", box=None, pad_edge=False, show_header=False, title_justify="left")
    table.title = title
    table.columns[1].justify = "right"
    for m in filter(lambda m: m.shown, measurements):
        target = "" if m.target is None else f"≤ {m.target:g}"
        color = "" if m.target is None else "green" if m.value <= m.target else "red"
        table.add_row(m.what, Text(m.format(), color), m.unit, target, m.note)
    console.print(table)
    console.print("; ".join(f"{key} {value}" for key, value in setting.items()), style="dim", highlight=False)
    if out:
        keys = ("what", "value", "unit", "target", "note")
        rows = {m.name: {k: v for k, v in asdict(m).items() if k in keys and v not in (None, "")} for m in measurements}
        found = {"benchmark": title, "command": shlex.join(sys.argv), "setting": setting, "results": rows}
        Path(out).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")


def machine(device: torch.device) -> dict[str, Any]:
    """Where it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": f"{device.type} ({name})", "threads": torch.get_num_threads(), "torch": torch.__version__}


def peak_memory(device: torch.device) -> float:
    """MiB: on CUDA what tensors took at most, elsewhere the resident memory of this process at its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def synchronize(device: torch.device) -> None:
    """Wait for what was launched on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
