"""espeak-ng, which speaks text and knows how words are pronounced, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asr.errors import ConfigError


class Espeak:
    """A process of `asr.corpora.espeak`, started again when it dies.

    Args:
        wanted_by: the option that asks for it, for messages.
        otherwise: what to do without it, for messages.

    Raises:
        ConfigError: it is not installed, or does not start.
    """

    def __init__(self, wanted_by: str, otherwise: str) -> None:
        self.wanted_by, self.otherwise = wanted_by, otherwise
        if importlib.util.find_spec("espeakng_loader") is None:
            raise ConfigError(
                f"{wanted_by}: espeak-ng, which that takes, is not installed. pip install espeakng-loader (GPL-3), "
                f"or {otherwise}."
            )
        self._start()

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "asr.corpora.espeak"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout
        hello = self.process.stdout.readline()
        if not hello:
            assert self.process.stderr
            reason = (self.process.stderr.read().strip().splitlines() or ["it says nothing"])[-1]
            self.close()
            raise ConfigError(
                f"{self.wanted_by}: espeak-ng does not start ({reason}). Install espeakng-loader again, "
                f"or {self.otherwise}."
            )
        self.variants: list[str] = json.loads(hello)["variants"]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `asr.corpora.espeak` answers to a request; an `error` where it could not be done.

        Raises:
            OSError: a file cannot be written.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            status = self.process.returncode
            self._start()
            return {"error": f"espeak-ng died with status {status}"}
        result: dict[str, Any] = json.loads(answer)
        if "errno" in result:
            raise OSError(result["errno"], result["error"], request["path"])
        return result

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
