"""What a training leaves out, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asr.data.loader import Manifests

TOO_SHORT = "too short for CTC"
OUTSIDE = "duration outside bounds"


@dataclass
class Dropped:
    """Utterances that a training leaves out, by reason. They may be millions: only `rows` reads theirs."""

    parts: list[tuple[Manifests, str, np.ndarray, np.ndarray, Sequence[str]]] = field(default_factory=list)
    """Of manifests, for a reason: utterances (U,), their seconds (U,), and details of each, or none."""

    def add(self, manifests: Manifests, reason: str, indices: Any, seconds: Any, details: Sequence[str] = ()) -> None:
        if len(indices):
            self.parts.append((manifests, reason, np.asarray(indices), np.asarray(seconds, np.float32), details))

    def count(self, reason: str) -> int:
        return sum(len(indices) for _, found, indices, *_ in self.parts if found == reason)

    def rows(self) -> Iterator[dict[str, Any]]:
        for manifests, reason, indices, seconds, details in self.parts:
            for k, (index, duration) in enumerate(zip(indices.tolist(), seconds.tolist(), strict=True)):
                detail = details[k] if details else ""
                if reason == OUTSIDE:
                    detail = f"{duration:.2f} s, data.min_seconds and data.max_seconds bound it"
                row = {"id": manifests[index].id, "reason": reason, "detail": detail}
                yield row | {"audio_filepath": manifests[index].audio_filepath, "duration": round(duration, 3)}

    def summary(self) -> str:
        count: Counter[str] = Counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        for _, reason, indices, durations, _ in self.parts:
            count[reason] += len(indices)
            seconds[reason] += float(durations.sum(dtype=np.float64))
        return ", ".join(f"{n} {reason} ({seconds[reason] / 3600:.2f} h)" for reason, n in count.most_common())
