"""The figures of a training as a table that an interruption neither cuts nor doubles."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class CsvLogger(Logger):
    """Appends a row to `metrics.csv` for each thing logged; a new column is one of empty cells in the rows before.

    Lightning's own begins a new file when a run is resumed.

    Args:
        path: the file.
        resume_step: where a resumed run goes on; the rows before stay, those of later steps will come again. `None`
            begins anew.
    """

    def __init__(self, path: str, resume_step: int | None = None):
        super().__init__()
        self.path, self.resume_step = Path(path), resume_step
        self.columns: list[str] = []
        self.last: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Nothing: they stand in the run's config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if row == self.last:  # a checkpoint has asked for it ahead of its time
            return
        self.last = row
        if not self.columns:
            kept = self._rows_before(self.resume_step) if self.resume_step is not None else []
            self._rewrite(kept, [*(kept[0] if kept else {})])
        if self.resume_step is not None and step is not None and step < self.resume_step:
            # of a validation that begins again, as its checkpoint is from before it
            rows = self._rows_before(None)
            self._rewrite([old for old in rows if not self._same(old, row)], self.columns)
        if new := [name for name in row if name not in self.columns]:
            self._rewrite(self._rows_before(None), self.columns + new)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._lines([row]))

    @staticmethod
    def _same(old: dict[str, str], row: dict[str, Any]) -> bool:
        """Whether it is the row of the same step and the same figures."""
        return old["step"] == str(row["step"]) and {name for name, cell in old.items() if cell} == {*row}

    def _rows_before(self, step: int | None) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut
        rows = csv.DictReader(io.StringIO(whole, newline=""))
        return [row for row in rows if step is None or int(row["step"]) < step]

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.columns = columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(self._lines([dict(zip(columns, columns, strict=True)), *rows] if columns else []), "utf-8")
        os.replace(part, self.path)

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()
