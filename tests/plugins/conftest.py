"""The example package, built and installed into a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr import plugins

EXAMPLE = Path(__file__).parents[1] / "plugin_example"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel of the example is unpacked: what `pip install --target` does, without pip and offline."""
    source = tmp_path_factory.mktemp("source") / "plugin_example"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example installed in this process, for one test."""
    monkeypatch.syspath_prepend(str(installed))
    plugins.providers.cache_clear()
    yield installed
    plugins.providers.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Call it to install a package of that name with these config files."""

    def make(name: str, configs: dict[str, str], package: bool = True) -> None:
        root = tmp_path / name
        for path, content in configs.items():
            (root / name / "conf" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / "conf" / path).write_text(content)
        if package:
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / "__init__.py").touch()
        info = root / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[asr.plugins]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(root))
        plugins.providers.cache_clear()

    yield make
    plugins.providers.cache_clear()
