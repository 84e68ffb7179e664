"""The tests that a record counts: pytest, a file at a time, and on CUDA a small set under compute-sanitizer."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from fastflow.bench import cases, record, watching
from fastflow.bench.parts import Deadline

BACKENDS = {"cuda": ("triton", "cuda"), "cpu": ("cpu",)}
TOOLS = ("memcheck", "racecheck")
# Every op with a kernel, on tensors of a few hundred elements.
SANITIZED = ("tests/test_streams_and_graphs.py", "poisoned")
_FOUND = 86  # compute-sanitizer's exit code where it found an error
_TAIL = 4000


def files(backend: str) -> dict[str, int | None]:
    """{test file: how many tests of it count for the backend}: the GPU tests with "triton" or "cuda" in their name, or
    for "cpu" the measured ops' files, uncounted. Raises ValueError if a file cannot be collected."""
    if backend == "cpu":
        return {path: None for path in sorted({f"tests/{path.name}" for op in cases.OPS
                                               for path in (record.ROOT / "tests").glob(f"test_{op}*.py")})}
    command = [*_pytest(backend), "--collect-only", "tests"]
    done = subprocess.run(command, cwd=record.ROOT, env=_environment(), capture_output=True, text=True)
    if done.returncode not in (0, 5):  # 5: there are none
        raise ValueError(f"the {backend} tests cannot be collected: {(done.stdout + done.stderr)[-_TAIL:]}")
    return dict(Counter(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line))


def run(backend: str, file: str, expected: int | None, deadline: Deadline) -> dict:
    """{passed, failed, skipped, seconds} of one file's tests of a backend; with failures also `output`, its end.

    A test that was `expected` and did not run has failed. Raises TimeoutError if the deadline cut it short.
    """
    workers = [] if expected is None else _workers(expected)
    counts, code = _counted([*_pytest(backend), *workers, file], expected, deadline)
    if code not in (0, 5) and not counts["failed"]:  # pytest itself ended badly
        counts["failed"] = 1
    return counts


def sanitize(backend: str, tool: str, deadline: Deadline) -> dict:
    """{status, reason, passed, failed, skipped, seconds} of the small set under one tool of compute-sanitizer, which
    watches this library's kernels. Status: "passed", "failed", or "not run" where the tool is absent."""
    program = find_sanitizer()
    if program is None:
        return {"status": "not run", "reason": "compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin"}
    file, keyword = SANITIZED
    kernels = [option for name in watched_kernels(backend) for option in ("--kernel-name", f"kns={name}")]
    # Failures of API calls are Python's to raise; PyTorch makes some and handles them.
    watched = [program, "--tool", tool, "--error-exitcode", str(_FOUND), "--target-processes", "all",
               "--report-api-errors", "no", *kernels]
    # Otherwise an access beyond a tensor is still inside the allocator's block.
    counts, code = _counted([*watched, *_pytest(f"{backend} and {keyword}"), file], None, deadline,
                            PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if code == _FOUND:
        return counts | {"status": "failed", "reason": f"{tool} found errors"}
    if code or counts["failed"] or not counts["passed"]:
        return counts | {"status": "failed", "reason": f"exit code {code}, {counts['passed']} tests passed"}
    return counts | {"status": "passed", "reason": ""}


def watched_kernels(backend: str) -> list[str]:
    """What the names of the backend's kernels have in them: their op's name, or what several ops' kernels share."""
    shared = {"triton": "elementwise_bijection", "cuda": "gaussian"}[backend]
    return [name for name, op in watching.ops().items() if op.on_cuda == backend] + [shared]


def find_sanitizer() -> str | None:
    """compute-sanitizer of the CUDA toolkit, on PATH or in $CUDA_HOME/bin."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")


def total(counts: list[dict]) -> dict[str, int]:
    """{passed, failed, skipped} of several."""
    return {key: sum(count[key] for count in counts) for key in ("passed", "failed", "skipped")}


def _pytest(backend: str) -> list[str]:
    chosen = [] if backend == "cpu" else ["-m", "gpu", "-k", backend]
    return [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *chosen]


def _workers(tests: int) -> list[str]:
    """Compiling kernels is most of the time of the GPU tests, and each process can compile one."""
    count = min(16, os.cpu_count() or 1, tests // 8)
    if count < 2 or find_spec("xdist") is None:
        return []
    return ["-n", str(count), "--dist", "worksteal"]


def _environment(**more: str) -> dict[str, str]:
    # Tests ask for deterministic algorithms, for which cuBLAS wants this.
    return os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | more


def _counted(command: list[str], expected: int | None, deadline: Deadline, **environment: str) -> tuple[dict, int]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "tests.xml"
        code, output = _finish([*command, f"--junitxml={report}"], _environment(**environment), deadline)
        counts = count_tests(report)
    missing = (expected or 0) - sum(counts.values())
    if missing > 0:
        counts["failed"] += missing
    if counts["failed"] or code not in (0, 5):
        counts["output"] = output[-_TAIL:]
    return counts | {"seconds": round(time.monotonic() - start, 1)}, code


def _finish(command: list[str], environment: dict[str, str], deadline: Deadline) -> tuple[int, str]:
    """Exit code and output. Raises TimeoutError at the deadline, with the command and all that it started ended."""
    with subprocess.Popen(command, cwd=record.ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=deadline.left)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def count_tests(report: Path) -> dict[str, int]:
    """{passed, failed, skipped} of a junit file; errors count as failed, and so does a file that is not there."""
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    totals = {key: 0 for key in ("tests", "failures", "errors", "skipped")}
    for suite in suites:
        for key in totals:
            totals[key] += int(suite.get(key, 0))
    failed = totals["failures"] + totals["errors"]
    return {"passed": totals["tests"] - failed - totals["skipped"], "failed": failed, "skipped": totals["skipped"]}
