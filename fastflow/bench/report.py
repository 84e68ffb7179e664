"""Reads records: one as a table, two side by side."""

import json
from itertools import groupby
from pathlib import Path

from fastflow.bench.table import duration, header, rivals_of, row, verdict


def load(path: Path) -> dict:
    """A record from disk. Raises ValueError naming the file if it is not one."""
    try:
        content = json.loads(path.read_text())
        table(content)  # reads every key that a report or a comparison needs
    except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"{path} is not a record of `fastflow bench record`: {error!r}") from None
    return content


def title(record: dict) -> str:
    """Device, versions and commit: what every quoted number needs beside it."""
    versions = record["versions"]
    return f"{record['device']['name']}, torch {versions['torch']}, commit {record['commit'][:12]}, {record['time']}"


def table(record: dict) -> str:
    """All results of a record, a table for each op and number of threads."""
    lines = [title(record)]
    for name, counts in record["tests"].items():
        lines.append(f"{name} tests: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    for backend, tools in record.get("sanitizer", {}).items():
        lines += [f"{backend} {tool}: {found['status']} {found['reason']}".rstrip() for tool, found in tools.items()]
    lines += [f"FAILED {name}: {error}" for name, error in record.get("failed", {}).items()]
    for count, rates in record["rates"].items():
        lines.append(f"{count} thread(s): copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, "
                     f"float32 matrix product {rates['matrix_flops_per_second'] / 1e9:.0f} GFLOP/s")
    for (op, count), group in groupby(record["results"], lambda result: (result["op"], result["threads"])):
        results = list(group)
        rivals = rivals_of(results)
        lines += ["", f"{op}, {count} thread(s), malloc {record['malloc']}", header(rivals)]
        lines += [row(result, rivals) for result in results]
    return "\n".join([*lines, "", verdict(record["results"])])


def comparison(before: dict, after: dict) -> str:
    """Time before, after, and the speed-up, of this library on every case that both records hold."""
    lines = [f"before: {title(before)}", f"after:  {title(after)}"]
    if before["device"]["name"] != after["device"]["name"]:
        lines.append("The devices differ: the ratios compare machines, not sources.")
    old = {_key(result): result for result in before["results"]}
    common = [(old[_key(result)], result) for result in after["results"] if _key(result) in old]
    if not common:
        raise ValueError("the two records have no case in common")
    lines.append(f"\n{'case':<64}  {'before':>8}  {'after':>8}  {'speed-up':>8}")
    for one, two in common:
        first, second = (result["providers"]["fastflow"]["seconds"] for result in (one, two))
        noisy = any(result["disturbance"]["reason"] for result in (one, two))
        lines.append(f"{'/'.join(map(str, _key(two))):<64}  {duration(first):>8}  {duration(second):>8}  "
                     f"{first / second:>8.2f}" + ("  not quiet" if noisy else ""))
    return "\n".join(lines)


def _key(result: dict) -> tuple:
    return (result["op"], result["size"], result["variant"], result["direction"], result["dtype"], result["threads"])
