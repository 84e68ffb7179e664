"""Whether a GPU kernel has been shown right: its sources against the measured records that ship with the package."""

import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastflow import _library

_PACKAGE = Path(__file__).parent
_RECORDS = (_PACKAGE / "records", _PACKAGE.parent / "benchmarks" / "records")  # installed, checkout

# What decides the results of each backend, by the start of a source's path.
_DECIDES = {"triton": ("kernels/", "fastflow/ops/"), "cuda": ("csrc/", "fastflow/ops/")}


@cache
def sources() -> dict[str, str]:
    """{path in the repository: sha256} of kernels/, fastflow/ops/ and, as the native library was built, csrc/."""
    folders = {"kernels": Path(find_spec("fastflow.kernels").origin).parent, "fastflow/ops": _PACKAGE / "ops"}
    hashed = {f"{name}/{path.relative_to(folder).as_posix()}": _digest(path)
              for name, folder in folders.items() for path in sorted(folder.rglob("*.py"))}
    return hashed | _library.build_info().get("sources", {})


def proved(backend: str) -> bool:
    """Whether a packaged record has the tests of "triton" or "cuda" green, under compute-sanitizer too, on exactly that
    backend's present sources."""
    present = _deciding(sources(), backend)
    return any(_green(record, backend) and _deciding(record.get("sources", {}), backend) == present
               for record in _records())


def changed_since_build() -> list[str]:
    """The sources of a checkout's native library that changed, came or went since it was built."""
    root = _PACKAGE.parent
    if not (root / "CMakeLists.txt").is_file():
        return []
    built = _library.build_info().get("sources", {})
    files = [path for path in (root / "csrc").rglob("*") if path.is_file()]
    present = {path.relative_to(root).as_posix(): _digest(path) for path in files}
    return sorted(path for path in built.keys() | present.keys() if built.get(path) != present.get(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _deciding(hashed: dict[str, str], backend: str) -> dict[str, str]:
    return {path: digest for path, digest in hashed.items()
            if path.startswith(_DECIDES[backend]) and not path.startswith("csrc/cpu/")}


def _green(record: dict, backend: str) -> bool:
    """What failed, in a timing too, or did not run proves nothing."""
    tests, sanitizer = (record.get(part, {}).get(backend, {}) for part in ("tests", "sanitizer"))
    checked = all(sanitizer.get(tool, {}).get("status") == "passed" for tool in ("memcheck", "racecheck"))
    return tests.get("passed", 0) > 0 and tests.get("failed", 1) == 0 and checked and not record.get("failed")


@cache
def _records() -> list[dict]:
    return [json.loads(path.read_text()) for folder in _RECORDS for path in sorted(folder.glob("*.json"))]
