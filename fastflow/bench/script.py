"""What the scripts of benchmarks/ have in common: their arguments, the allocator they run with, the file they write.

A mistake of the user ends a script with one line and exit code 2 before anything is measured.
"""

import argparse
import json
from pathlib import Path

from fastflow.bench import malloc, record
from fastflow.bench.command import check_device, check_folder_of, default_threads


def parser(doc: str, *, seconds: float, spent_on: str) -> argparse.ArgumentParser:
    """Its description is the first line of the script's docstring; has --device, --threads and --seconds."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--threads", type=int, nargs="+", default=default_threads(), help="of the CPU (default 1 2)")
    made.add_argument("--seconds", type=float, default=seconds, help=f"spent on {spent_on} (default {seconds:g})")
    return made


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with --json, --commit and --default-malloc, in a process with the allocator to measure with."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--commit", help="the commit of these sources for --json, where there is no .git")
    parser.add_argument("--default-malloc", action="store_true", help="keep the allocator as it is")
    options = parser.parse_args()
    try:
        check_device(options.device)
        if options.json:
            check_folder_of("json", options.json)
            options.commit = record.commit(options.commit)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if options.device == "cpu" and not options.default_malloc:
        malloc.ensure_tuned()
    return options


def write(options: argparse.Namespace, **found: object) -> None:
    """What was found, and where: into the file that --json names, if it names one."""
    if options.json:
        options.json.write_text(json.dumps({
            "device": record.describe_device(options.device), "versions": record.versions(), "commit": options.commit,
            "malloc": malloc.description() if options.device == "cpu" else None, **found}, indent=1) + "\n")
