"""Results as text: one line a case, with the ratio to each rival and the verdict on each target."""

from collections.abc import Iterable

from fastflow.bench.overhead import judge
from fastflow.bench.providers import of_op
from fastflow.bench.timing import NOISY_SPREAD

WIDTHS = {"case": 36, "direction": 16, "fastflow": 10, "spread": 6, "GB/s": 6, "of copy": 7, "traffic": 7}
RIVAL_WIDTH = 16
YARDSTICKS = ("copy", "matrix")  # measured in turn with the providers, on CUDA with targets of their own


def columns_of(op: str, rivals: Iterable[str], device: str) -> list[str]:
    """The rivals that compute the op, and on CUDA the yardsticks."""
    return of_op(op, rivals) + list(YARDSTICKS if device == "cuda" else ())


def header(rivals: Iterable[str]) -> str:
    """The column names, and a rule below them."""
    names = [f"{name:{'<' if name in ('case', 'direction') else '>'}{width}}" for name, width in WIDTHS.items()]
    line = "  ".join([*names, *(f"{'x ' + name:>{RIVAL_WIDTH}}" for name in rivals)])
    return f"{line}\n{'-' * len(line)}"


def row(result: dict, rivals: Iterable[str]) -> str:
    """One result: time, spread, GB/s of minimum traffic, share of a copy of the same bytes, how many times the minimum
    traffic eager moves, speed over each rival."""
    own = result["providers"]["fastflow"]
    case = f"{result['size']} {result['variant']}"
    if result["dtype"] != "float32":
        case += f" {result['dtype']}"
    cells = [
        f"{case:<{WIDTHS['case']}}", f"{result['direction']:<{WIDTHS['direction']}}",
        f"{duration(own['seconds']):>{WIDTHS['fastflow']}}", f"{own['spread']:>{WIDTHS['spread']}.0%}",
        f"{result['bytes'] / own['seconds'] / 1e9:>{WIDTHS['GB/s']}.1f}",
        f"{result['copy_seconds'] / own['seconds']:>{WIDTHS['of copy']}.0%}",
        f"{_traffic(result):>{WIDTHS['traffic']}}",
        *(f"{_rival(result, name):>{RIVAL_WIDTH}}" for name in rivals),
    ]
    lines = ["  ".join(cells), *_overhead(result)]
    if result["backend"] == "reference":
        lines.append("    served by the reference, not by a kernel")
    lines += [f"    {name} not measured: {why.splitlines()[0]}" for name, why in result.get("failed", {}).items()]
    wide = [f"{name} {provider['spread']:.0%}" for name, provider in result["providers"].items()
            if provider["spread"] > NOISY_SPREAD]
    reasons = [result["disturbance"]["reason"], f"spread of {', '.join(wide)}" if wide else ""]
    if any(reasons):
        lines.append(f"    not quiet: {'; '.join(filter(None, reasons))}")
    return "\n".join(lines)


def rivals_of(results: Iterable[dict]) -> list[str]:
    """The columns for these results: every provider but this library, and a yardstick where a target is set for it."""
    names = (name for result in results for name in (*result["providers"], *result["targets"]))
    return [name for name in dict.fromkeys(names) if name != "fastflow"]


def _traffic(result: dict) -> str:
    moved = result.get("eager_bytes")
    return f"{moved / result['bytes']:.2f}" if moved else "-"


def _rival(result: dict, name: str) -> str:
    if name not in result["providers"] and f"{name}_seconds" not in result:
        return "-"
    ratio = speed_over(result, name)
    target = result["targets"].get(name)
    if target is None:
        return f"{ratio:.2f}"
    judged = _judge(result, name, target)
    return f"{ratio:.2f} {'>=' if ratio >= target else '<'} {target:.3g} {_VERDICTS[judged]}"


def _overhead(result: dict) -> list[str]:
    """What a small call costs, where that was measured."""
    if "overhead" not in result:
        return []
    cost = result["overhead"]
    parts = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in cost["parts"].items())
    figures = ", ".join(f"{name} {value:.1f} (target {target:g}) {'ok' if met else 'MISS'}"
                        for name, (value, target, met) in judge(result).items())
    eager = ", ".join(f"{kind} {duration(cost[kind]['eager'])}" for kind in ("python", "graph") if kind in cost)
    return [f"    {figures}; parts in us: {parts}; eager: {eager}"]


_VERDICTS = {"met": "ok", "missed": "MISS", "undecided (not quiet)": "?"}


def _judge(result: dict, rival: str, target: float) -> str:
    providers = result["providers"]
    spread = result.get(f"{rival}_spread", 0.0) if rival in YARDSTICKS else providers[rival]["spread"]
    if result["disturbance"]["reason"] or max(spread, providers["fastflow"]["spread"]) > NOISY_SPREAD:
        return "undecided (not quiet)"
    return "met" if speed_over(result, rival) >= target else "missed"


def speed_over(result: dict, rival: str) -> float:
    """How many times the rival's speed this library reached; "copy" moves its bytes, "matrix" makes its flops."""
    seconds = result[f"{rival}_seconds"] if rival in YARDSTICKS else result["providers"][rival]["seconds"]
    return seconds / result["providers"]["fastflow"]["seconds"]


def verdict(results: list[dict]) -> str:
    """How many targets were met and missed; one measured on a busy machine is undecided."""
    judged = [_judge(result, rival, target) for result in results for rival, target in result["targets"].items()]
    judged += ["met" if met else "missed" for result in results if "overhead" in result
               for _, _, met in judge(result).values()]
    return f"{len(judged)} targets: " + ", ".join(f"{judged.count(what)} {what}" for what in _VERDICTS)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, size = ("s", 1) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    return f"{seconds / size:.3g} {unit}"
