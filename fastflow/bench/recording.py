"""`fastflow bench record`: build, tests, sanitizers and timings, in parts that a later run goes on from."""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import torch

from fastflow.bench import build, malloc, record, suites
from fastflow.bench.cases import Case
from fastflow.bench.parts import Deadline, OutOfTime, Part, Partial, do
from fastflow.bench.run import machine_rates, run
from fastflow.bench.table import columns_of, header, row, verdict

STOPPED = 3
_NOT_ON_CPU = "compute-sanitizer checks CUDA kernels; `make sanitize` checks the C++ ones"


def main(args: argparse.Namespace, chosen: list[Case], rivals: tuple[str, ...]) -> int:
    """Goes on with the unfinished record of the same sources, or begins one; 0, or STOPPED at the deadline."""
    deadline = Deadline.after(args.minutes)
    folder, commit = record.folder(args.folder), record.commit(args.commit)
    machine = record.describe_device(args.device)
    if not args.no_tests:
        record.require_tests()
    partial = Partial(folder / f"{record.slug(machine)}.partial", _identity(args, rivals, commit, machine), args.fresh)
    try:
        _build(args, partial, deadline)
        tests = {} if args.no_tests else _test_files(args, partial, deadline)
        parts = [*_test_parts(tests), *_timing_parts(args, chosen, rivals)]
        do(parts, partial, deadline)
    except OutOfTime as stopped:
        advice = "The same command goes on from there." if partial.kept else "As nothing was finished, give it more."
        print(f"fastflow bench: the {args.minutes:.3g} minutes are over, at least {stopped.left} parts are left; what "
              f"is done is in {partial.path}. {advice}", file=sys.stderr)
        return STOPPED
    path = _write(folder, args, chosen, tests, partial, commit, machine)
    partial.remove()
    print(f"wrote {path}")
    return 0


def _identity(args: argparse.Namespace, rivals: tuple[str, ...], commit: str, machine: dict) -> dict:
    return {
        "commit": commit, "device": machine, "versions": record.versions(),
        "options": {"providers": ",".join(rivals), "seconds": args.seconds, "malloc": malloc.description(),
                    "launch table": os.environ.get("FASTFLOW_LAUNCH_TABLE")},
        "sources": _sources(),
    }


def _sources() -> dict[str, str]:
    """{path: sha256} of all that decides what a part finds."""
    files = [path for folder in ("fastflow", "kernels", "csrc", "tests") for path in (record.ROOT / folder).rglob("*")
             if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")]
    return {path.relative_to(record.ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(files)}


def _build(args: argparse.Namespace, partial: Partial, deadline: Deadline) -> None:
    known = "build" in partial
    do([Part("build", lambda d: build.build(args.device, d),
             lambda made: f"build: {made['reason'] or 'up to date'}, {made['seconds']:.0f} s")], partial, deadline)
    if not known and partial["build"]["built"]:
        _go_on_afresh(deadline)  # this process has the old library


def _go_on_afresh(deadline: Deadline) -> NoReturn:
    left = [] if deadline.left is None else ["--minutes", f"{deadline.left / 60:.3f}"]
    malloc.start_again(dict(os.environ), "--no-fresh", *left)


def _test_files(args: argparse.Namespace, partial: Partial, deadline: Deadline) -> dict[str, dict]:
    """{backend: {file: number of its tests, or None}}."""
    do([Part(f"collect {backend} tests", lambda _, backend=backend: suites.files(backend),
             lambda found, backend=backend: f"{backend} tests: {len(found)} files")
        for backend in suites.BACKENDS[args.device]], partial, deadline)
    return {backend: partial[f"collect {backend} tests"] for backend in suites.BACKENDS[args.device]}


def _test_parts(tests: dict[str, dict]) -> Iterator[Part]:
    for backend, files in tests.items():
        for file, expected in files.items():
            yield Part(f"test {backend} {file}", lambda d, b=backend, f=file, e=expected: suites.run(b, f, e, d),
                       lambda counts, b=backend, f=file: _counts_line(f"{b} tests, {f}", counts))
    for backend in tests:
        for tool in suites.TOOLS:
            yield Part(f"sanitize {backend} {tool}", lambda d, b=backend, t=tool: _sanitize(b, t, d),
                       lambda found, b=backend, t=tool: f"{t}, {b} kernels: {found['status']} {found['reason']}"
                                                        + (f"\n{found['output']}" if "output" in found else ""))


def _sanitize(backend: str, tool: str, deadline: Deadline) -> dict:
    if backend == "cpu":
        return {"status": "not run", "reason": _NOT_ON_CPU}
    return suites.sanitize(backend, tool, deadline)


def _counts_line(name: str, counts: dict) -> str:
    line = ", ".join(f"{counts[what]} {what}" for what in ("passed", "failed", "skipped"))
    return f"{name}: {line} in {counts['seconds']:.0f} s" + (f"\n{counts['output']}" if counts["failed"] else "")


def _timing_parts(args: argparse.Namespace, chosen: list[Case], rivals: tuple[str, ...]) -> Iterator[Part]:
    for count in args.threads:
        yield Part(f"rates {count}",
                   lambda _, n=count: machine_rates([n], args.device, args.seconds)[str(n)],
                   lambda rates, n=count: f"{n} thread(s): copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s")
        for op, cases in groupby(chosen, lambda case: case.op):
            columns = columns_of(op, rivals, args.device)
            for first, case in enumerate(cases):
                yield Part(_case_part(case, count), lambda d, c=case, n=count: _measured(args, c, rivals, n, d),
                           lambda result, c=case, n=count, k=columns, new=not first: _result_line(result, c, n, k, new))


def _case_part(case: Case, threads: int) -> str:
    return f"time {case.name} {threads}"


def _measured(args: argparse.Namespace, case: Case, rivals: tuple[str, ...], threads: int, deadline: Deadline) -> dict:
    """The result of a case, or {"error"} if this library's own call fails there."""
    if args.device == "cuda" and _lost():
        _go_on_afresh(deadline)
    try:
        return next(run([case], rivals, [threads], device=args.device, seconds=args.seconds, memory=True))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def _lost() -> bool:
    """Whether an earlier call, by an illegal access, has taken the device from this process."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def _result_line(result: dict, case: Case, threads: int, columns: Sequence[str], new: bool) -> str:
    """A line of the table; of a `new` one, its title and column names before that."""
    line = f"{case.name} FAILED: {result['error']}" if "error" in result else row(result, columns)
    return f"\n{case.op}, {threads} thread(s)\n{header(columns)}\n{line}" if new else line


def _write(folder: Path, args: argparse.Namespace, chosen: list[Case], tests: dict, partial: Partial, commit: str,
           machine: dict) -> Path:
    measured = {(case, count): partial[_case_part(case, count)] for count in args.threads for case in chosen}
    results = [result for result in measured.values() if "error" not in result]
    failed = {f"{case.name} {count}": result["error"] for (case, count), result in measured.items()
              if "error" in result}
    by_file = {backend: {file: partial[f"test {backend} {file}"] for file in files} for backend, files in tests.items()}
    parts = {
        "build": partial["build"],
        "tests": {backend: suites.total(list(files.values())) for backend, files in by_file.items()},
        "test_files": by_file,
        "sanitizer": {backend: {tool: partial[f"sanitize {backend} {tool}"] for tool in suites.TOOLS}
                      for backend in tests},
        "failed": failed,
    }
    rates = {str(count): partial[f"rates {count}"] for count in args.threads}
    print(f"\n{verdict(results)}")
    return record.write(folder, results, rates, commit=commit, machine=machine, parts=parts)
