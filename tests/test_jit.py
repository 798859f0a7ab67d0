from __future__ import annotations

import subprocess
import sys

import pytest

from asr import jit


@pytest.fixture(autouse=True)
def fresh():
    jit.cache_folder.cache_clear()
    yield
    jit.cache_folder.cache_clear()


def test_code_compiled_from_other_sources_is_not_used(tmp_path, monkeypatch):
    """numba itself looks at the file of the caller, not at that of the callee."""
    (tmp_path / "lm").mkdir()
    monkeypatch.setattr(jit, "PACKAGE", tmp_path)
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "")
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["from asr import jit", "jit.PACKAGE = jit.Path(__file__).parent", "from callee import value"]
    caller = "\n".join([*lines, "@jit.jit", "def f():", "    return value()", "print(f())", ""])
    (tmp_path / "caller.py").write_text(caller)
    for number in (1, 2):
        callee = f"from asr.jit import jit\n@jit\ndef value():\n    return {number}\n"
        (tmp_path / "lm" / "callee.py").write_text(callee)
        (tmp_path / "callee.py").write_text(callee)
        done = subprocess.run([sys.executable, "caller.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(number)]
    assert len(list((tmp_path / "__pycache__").glob("numba-*"))) == 2


def test_compiles_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path / "file"))
    assert jit.cache_folder() is None

    @jit.jit
    def double(x):
        return 2 * x

    assert double(21) == 42


def test_the_users_folder_is_taken_and_numba_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path))

    @jit.jit
    def triple(x):
        return 3 * x

    assert triple(2) == 6
    assert list(tmp_path.glob("numba-*/*/*.nbi"))
    assert str(tmp_path) == jit.numba.config.CACHE_DIR
