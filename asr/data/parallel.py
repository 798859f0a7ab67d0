"""Work on a large manifest, shared among the cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from asr import signals
from asr.machine import processors

_act: Callable[[Any], Any]


def in_processes(act: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Map over items, in order, in as many forked processes as there are cores.

    Without processes where they cannot be forked, or would be too many: for a single item, in a data worker.
    """
    count = min(processors(), len(items))
    can_fork = "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon
    if count < 2 or not can_fork:
        yield from map(act, items)
        return
    global _act
    _act = act  # a forked process has it, whether it can be pickled or not
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork"), signals.ignore) as pool:
        with signals.held_back():
            results = pool.map(_call, items)
        yield from results


def _call(item: Any) -> Any:
    return _act(item)
