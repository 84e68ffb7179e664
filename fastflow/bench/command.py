"""`fastflow bench`: run, record, report, compare, serving, tune."""

import argparse
import json
import os
import sys
from pathlib import Path

from fastflow.bench import cases, lists, malloc, providers

SECONDS = {"quick": 0.6, "full": 2.0, "cuda": 0.3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `fastflow bench` on its parser."""
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="measure and print a table (about two minutes)")
    _add_selection(run)
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")

    record = commands.add_parser("record", help="build, test, measure, write a record", description=(
        "Builds the native library if its sources changed, runs the tests (on CUDA: every gpu test, and a small set "
        "under compute-sanitizer), times every case, and writes benchmarks/records/<device>-<UTC time>.json. Each part "
        "is kept in <device>.partial as it is done: after an interruption the same command goes on. Exit codes: 0; 2 a "
        "mistake of the user; 3 the --minutes are over."))
    _add_selection(record)
    record.add_argument("--commit", help="the commit of these sources, where there is no .git")
    record.add_argument("--no-tests", action="store_true", help="skip the tests: the record proves no kernel")
    record.add_argument("--folder", type=Path, help="write the record here (default benchmarks/records)")
    record.add_argument("--minutes", type=_minutes, help="stop after so many, to go on with the same command")
    record.add_argument("--fresh", action=argparse.BooleanOptionalAction, default=False,
                        help="throw away the parts that an earlier run left")

    report = commands.add_parser("report", help="print a record as a table")
    report.add_argument("record", type=Path)

    compare = commands.add_parser("compare", help="print how much faster the second record is than the first")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)

    serving = commands.add_parser("serving", help="print which backend serves each kind of call here")
    serving.add_argument("--device", default="cpu", choices=("cpu", "cuda"))

    tune = commands.add_parser("tune", help="find the fastest tiles of the Triton kernels", description=(
        "Times a short list of tiles for each Triton kernel on the shapes of the GPU cases and writes the fastest of "
        "each family as a table, which fastflow.kernels.launch.load_table or FASTFLOW_LAUNCH_TABLE=FILE puts to use. "
        "Nothing is tuned unless this is run."))
    tune.add_argument("--op", help="only this op's kernels (default: every op with a Triton kernel)")
    tune.add_argument("--device", default="cuda", choices=("cuda", "cpu-interpreter"),
                      help="cpu-interpreter tries the machinery on tiny shapes; its times mean nothing")
    tune.add_argument("--seconds", type=float, default=0.1, help="time spent on each tile and kernel")
    tune.add_argument("--out", type=Path, default=Path("launch-table.json"), metavar="FILE")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", choices=sorted(cases.OPS), help="only this op")
    parser.add_argument("--case", metavar="PATTERN", help="any case whose name has this, like 4096x64/sigmoid or tanh")
    parser.add_argument("--direction", choices=cases.DIRECTIONS, help="only this direction")
    parser.add_argument("--provider", action="append", choices=providers.RIVALS, metavar="NAME",
                        help=f"rival, repeatable: {', '.join(providers.RIVALS)} (default: all but aoti, on cuda "
                             f"{', '.join(providers.CUDA_RIVALS)}; an op has those that compute it)")
    parser.add_argument("--threads", type=_thread_counts, default=default_threads(), metavar="N,N",
                        help="CPU threads, default 1 and 2")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--full", action="store_true", help="all shapes and scale maps (about half an hour)")
    parser.add_argument("--seconds", type=float, help="time spent on each case (default 0.6, --full 2, cuda 0.3)")
    parser.add_argument("--default-malloc", action="store_true", help="keep the allocator as it is")


def default_threads() -> tuple[int, ...]:
    """One thread and, where there is a second core, two."""
    return (1, 2)[: os.cpu_count()]


def _thread_counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"threads is {text}, expected numbers of at least 1")
    return counts


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 0:
        raise argparse.ArgumentTypeError(f"minutes is {text}, expected at least 0")
    return minutes


def main(args: argparse.Namespace) -> int:
    """Runs the chosen subcommand; its exit code, or 2 after one line on stderr for a mistake of the user."""
    try:
        return _COMMANDS[args.bench_command](args) or 0
    except (ValueError, OSError) as error:
        print(f"fastflow bench: {error}", file=sys.stderr)
        return 2


def _selected(args: argparse.Namespace) -> tuple[list[cases.Case], tuple[str, ...]]:
    """The cases and the rivals."""
    usual = providers.CUDA_RIVALS if args.device == "cuda" else providers.DEFAULT_RIVALS
    chosen = lists.select(args.case, args.op, args.direction, args.full, args.device)
    return chosen, tuple(args.provider or usual)


def _measure(args: argparse.Namespace) -> list[dict]:
    from fastflow.bench.run import run
    from fastflow.bench.table import columns_of, header, row, verdict

    chosen, rivals = _selected(args)
    results, section = [], None
    for result in run(chosen, rivals, args.threads, device=args.device, seconds=args.seconds):
        if section != (result["op"], result["threads"]):
            section = result["op"], result["threads"]
            columns = columns_of(result["op"], rivals, args.device)
            print(f"\n{result['op']}, {args.device}, {result['threads']} thread(s), malloc {malloc.description()}")
            print(header(columns))
        print(row(result, columns), flush=True)
        results.append(result)
    print(f"\n{verdict(results)}")
    return results


def check_folder_of(name: str, path: Path) -> None:
    """Raises ValueError where the file that an argument names cannot be written."""
    if not path.parent.is_dir():
        raise ValueError(f"{name} is {path}, expected a file in a folder that exists")


def check_device(device: str) -> None:
    """Raises ValueError on "cuda" where there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, expected cpu: torch sees no CUDA device here")


def _prepare(args: argparse.Namespace) -> None:
    check_device(args.device)
    args.seconds = args.seconds or SECONDS["full" if args.full else "cuda" if args.device == "cuda" else "quick"]
    if args.device == "cuda":
        args.threads = args.threads[:1]
    if args.device == "cpu" and not args.default_malloc:
        malloc.ensure_tuned()


def _run(args: argparse.Namespace) -> None:
    if args.json:
        check_folder_of("json", args.json)
    _prepare(args)
    results = _measure(args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def _record(args: argparse.Namespace) -> int:
    from fastflow.bench import recording

    _prepare(args)
    return recording.main(args, *_selected(args))


def _report(args: argparse.Namespace) -> None:
    from fastflow.bench import report

    print(report.table(report.load(args.record)))


def _compare(args: argparse.Namespace) -> None:
    from fastflow.bench import report

    print(report.comparison(report.load(args.before), report.load(args.after)))


def _serving(args: argparse.Namespace) -> None:
    from fastflow.bench.serving import markdown, observe

    check_device(args.device)
    print(markdown(observe(args.device)))


def _tune(args: argparse.Namespace) -> None:
    from fastflow.bench import tune

    check_folder_of("out", args.out)
    check_device(args.device)
    tune.main(args.device, args.op, args.seconds, args.out)


_COMMANDS = {"run": _run, "record": _record, "report": _report, "compare": _compare, "serving": _serving, "tune": _tune}
