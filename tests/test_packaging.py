"""What a user installs: the wheel, with and without a compiler, imported from elsewhere, with a clean stderr."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from needs import require

import fastflow

ROOT = Path(fastflow.__file__).resolve().parent.parent
USE = """
import fastflow, torch
from fastflow.ops import affine_coupling
from fastflow.ops import ScaleMap
x = torch.arange(12.0).view(3, 4) / 8
with fastflow.backend({backend!r}):
    z, log_det = affine_coupling(x, x, x, scale_map=ScaleMap("exp"))
torch.testing.assert_close(z, x * x.exp() + x)
torch.testing.assert_close(log_det, x.sum(1))
print(fastflow.__file__)
"""


def _run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)


def _build_wheel(folder: Path, path: str) -> Path:
    """The wheel of this checkout, built with the given PATH; the C++ that is already compiled is not compiled again."""
    result = _run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder,
                  "build", "--build-lib", folder / "lib",
                  "bdist_wheel", "--bdist-dir", folder / "unpacked", "--dist-dir", folder,
                  cwd=ROOT, env=os.environ | {"PATH": path})
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """A fresh virtual environment that sees the packages of this one, but not its editable fastflow."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        assert _run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", self.python]
        installed = _run(*pip, "install", "--no-deps", "--no-index", wheel)
        assert installed.returncode == 0, installed.stderr
        # A folder named in a .pth is searched, but the .pth files in it, such as the editable install, are not read.
        (self.packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()

    def run(self, code: str, *options: str) -> subprocess.CompletedProcess:
        return _run(self.python, *options, "-c", code, cwd=self.elsewhere)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    require("compiler")
    return _build_wheel(tmp_path_factory.mktemp("wheel"), os.environ["PATH"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture(scope="module")
def plain_environment(tmp_path_factory):
    """Installed where there is no compiler."""
    wheel = _build_wheel(tmp_path_factory.mktemp("plain_wheel"), "/nonexistent")
    assert wheel.name.endswith("-py3-none-any.whl")
    return Environment(tmp_path_factory.mktemp("plain_environment"), wheel)


def test_wheel_holds_what_is_imported_and_nothing_else(wheel):
    assert re.fullmatch(rf"fastflow-{re.escape(fastflow.__version__)}-cp311-abi3-linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastflow/_C.abi3.so", "fastflow/kernels/__init__.py", "fastflow/ops/affine_coupling.py"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"fastflow", wheel.name.split("-cp")[0] + ".dist-info"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastflow").rglob("*.py")}
    records = {f"fastflow/records/{path.name}" for path in (ROOT / "benchmarks" / "records").glob("*.json")}
    assert sources | records <= set(names)


def test_source_distribution_holds_what_the_build_needs(tmp_path):
    result = _run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path,
                  cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()] + [*(ROOT / "kernels").rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in needed} <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_computes_natively_from_elsewhere_and_says_nothing(environment):
    result = environment.run(USE.format(backend="cpu"), "-W", "error")
    assert (result.returncode, result.stderr) == (0, "")
    assert Path(result.stdout.strip()).is_relative_to(environment.packages)


def test_installed_command_runs(environment):
    result = _run(environment.python.parent / "fastflow", "doctor", cwd=environment.elsewhere)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^cpu +available +C\+\+, instruction set", result.stdout, re.MULTILINE)


def test_without_a_compiler_the_reference_computes_and_one_warning_says_so(plain_environment):
    result = plain_environment.run("import warnings; warnings.simplefilter('always')" + USE.format(backend="auto"))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("UserWarning: fastflow: there is no native library") == 1
    assert "install a C++17 compiler such as g++ 11 or later, then: pip install --no-build-isolation" in result.stderr
    assert Path(result.stdout.strip()).is_relative_to(plain_environment.packages)


def test_without_a_library_asking_for_it_raises(plain_environment):
    result = plain_environment.run(USE.format(backend="cpu"))
    assert "backend 'cpu' was asked for and is unavailable: there is no native library" in result.stderr


def test_broken_library_is_an_import_error_with_the_reason(plain_environment):
    broken = plain_environment.packages / "fastflow" / "_C.abi3.so"
    broken.write_bytes(b"not a library")
    try:
        result = plain_environment.run("import fastflow")
    finally:
        broken.unlink()
    reason = r"ImportError: fastflow: the native library does not load: .*_C\.abi3\.so: file too short"
    assert re.search(reason, result.stderr)


def test_building_without_torch_names_the_flag_that_was_forgotten(tmp_path):
    require("compiler")
    for name in ("setuptools", "_distutils_hack", "cmake", "ninja"):
        (tmp_path / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    result = _run(sys.executable, "-S", "setup.py", "build_ext", "--build-lib", tmp_path / "lib", cwd=ROOT,
                  env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)})
    assert result.returncode != 0
    assert "torch is not installed in the environment that builds" in result.stderr
    assert "pip install --no-build-isolation ." in result.stderr


def test_kernels_are_imported_as_part_of_the_package():
    """`import kernels` would load a second copy and register everything twice."""
    wrong = re.compile(r"^\s*(import|from) kernels\b", re.MULTILINE)
    folders = [ROOT / name for name in ("fastflow", "kernels", "tests", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path for path in files if wrong.search(path.read_text())] == []
