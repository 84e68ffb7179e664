"""Builds the native library with CMake; everything else is in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent
# Packages whose folder is not in fastflow/.
ELSEWHERE = {"fastflow.kernels": "kernels", "fastflow.records": "benchmarks/records"}
# pip runs this without the virtual environment's bin on PATH.
SEARCH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def has_compiler() -> bool:
    return any(shutil.which(name, path=SEARCH) for name in [os.environ.get("CXX") or "c++", "g++", "clang++"])


def tool(name: str) -> str:
    path = shutil.which(name, path=SEARCH)
    if path is None:
        raise SetupError(f"fastflow: {name} was not found; pip install {name}")
    return path


class CMakeBuild(build_ext):
    """Builds CMakeLists.txt in build/native, kept for the next time, and copies the library to where it is wanted."""

    def build_extension(self, extension: Extension) -> None:
        torch = find_spec("torch")
        if torch is None:
            raise SetupError("fastflow: torch is not installed in the environment that builds the native library. pip "
                             "hides yours unless told otherwise; run: pip install --no-build-isolation .")
        build = ROOT / self.get_finalized_command("build").build_base / "native"
        self._cmake(
            "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DTORCH_DIR={torch.submodule_search_locations[0]}", "-DFASTFLOW_CUDA=AUTO", "-DFASTFLOW_SANITIZE=",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")))  # the last one counts; CMake remembers those of last time
        self._cmake("--build", build)
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(target.name + ".new")  # replaced in one step: the old one may be in use
        shutil.copy2(build / "_C.abi3.so", fresh)
        fresh.replace(target)

    def _cmake(self, *arguments: object) -> None:
        if subprocess.run([tool("cmake"), *arguments]).returncode != 0:
            raise SetupError("fastflow: the native build failed, as CMake says above")


# Without a compiler the package installs all the same and computes by its references.
extensions = [Extension("fastflow._C", sources=[], py_limited_api=True)] if has_compiler() else []
setup(
    packages=[*find_packages(include=["fastflow", "fastflow.*"]), *ELSEWHERE],
    package_dir={"fastflow": "fastflow"} | ELSEWHERE,
    package_data={"fastflow.records": ["*.json"]},
    ext_modules=extensions,
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
