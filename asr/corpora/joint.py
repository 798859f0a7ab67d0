"""Several corpora as one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asr.corpora.base import REPORT, Report, check_out
from asr.errors import AsrError, ConfigError


@dataclass(kw_only=True)
class Joint:
    """Corpora that are prepared side by side; the split `train` of the part `an4` is called `train-an4`."""

    parts: Mapping[str, Any] = field(default_factory=dict)
    """Corpora by name, each a config of `corpus/`."""

    def prepare(self, out: str | Path) -> Report:
        """Prepare every part in a folder of its name, with a report of its own, and write a report of all to `out`.

        Raises:
            ConfigError: there are no parts.
            DataError: a part is not where it should be or is damaged, or `out` holds something else.
        """
        if not self.parts:
            raise ConfigError("corpus.parts: there are none. Add some: +corpus@corpus.parts.an4=an4, for one.")
        out = Path(os.path.abspath(out))
        check_out(self.arguments(), out)
        manifests, kept, dropped = {}, {}, {}
        for name, part in self.parts.items():
            try:
                report = part.prepare(out / name)
            except AsrError as error:  # it knows its options as corpus.root and so on
                raise type(error)(
                    re.sub(r"(?<![\w/.-])corpus\.(?=[a-z_])", f"corpus.parts.{name}.", str(error))
                ) from None
            for split, path in report.manifests.items():
                manifests[f"{split}-{name}"] = path
                kept[f"{split}-{name}"], dropped[f"{split}-{name}"] = report.kept[split], report.dropped[split]
        report = Report(self.arguments(), manifests, kept, dropped)
        partial = out / f".{REPORT}.partial"
        partial.write_text(report.dump(out), encoding="utf-8")
        os.replace(partial, out / REPORT)
        return report

    def arguments(self) -> dict[str, Any]:
        """The corpus and its parts with theirs, as the report keeps them."""
        parts = {name: part.arguments() if hasattr(part, "arguments") else {} for name, part in self.parts.items()}
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", "parts": parts}
