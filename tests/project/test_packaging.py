"""The wheel: everything travels in it, and it works outside a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy: setuptools leaves its build folder beside the sources.
    copy = folder / "sources"
    for name in ("onediff", "launcher", "data_prep", "configs", "slurm"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    words = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; what it depends on is borrowed from this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=300)
    python = environment / "bin" / "python"
    words = ["--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = environment / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_configurations_and_templates_travel_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("configs", "slurm"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file():
                assert any(name.endswith(f"share/onediff/{file.relative_to(ROOT)}") for name in names), file
    assert not any(name.startswith("tests/") for name in names)


def test_an_installed_command_finds_its_configurations_outside_the_checkout(installed, tmp_path):
    command = str(installed / "bin" / "onediff")
    run = ["train", "configs/demo.yaml"]
    done = subprocess.run([command, *run], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    # The configuration was found; the data that it names were not rendered here.
    assert "data/scenes" in done.stderr
    assert "onediff data" in done.stderr
    sizes = ["--pairs", "4", "--singles", "4", "--split-sizes", "train=0.5,test=0.5", "--processes", "1"]
    words = ["data", "render", "--out", "data/scenes", *sizes]
    subprocess.run([command, *words], cwd=tmp_path, check=True, timeout=300, capture_output=True)
    assert (tmp_path / "data" / "scenes" / "pairs" / "test" / "manifest.json").is_file()
