"""How fast, exact and small is the marginal of Gaussian classes? `python benchmarks/gaussian_marginal.py [--quick]`.

log p(z) of 4096 rows for 10, 100 and 1000 classes of 64, 196 and 784 features, forward and with backward, at one and
two threads, or with --device cuda the cases of the GPU figures: the table of `fastflow bench run`, and below each line

    error    greatest one of a row against float64, over 512 rows, and how many times that of eager PyTorch
    scratch  memory beyond the results, whoever allocates it: on a CPU by the pages of a fresh process
             (fastflow/bench/scratch.py), on CUDA by the allocator's peak

A rival that would hold [B, K, D] is left out where that takes more than 2 GiB.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from fastflow import _backend
from fastflow.bench import gaussian, lists, providers, script
from fastflow.bench.cases import Case
from fastflow.bench.providers import prepare
from fastflow.bench.run import kernel_of, run
from fastflow.bench.scratch import in_fresh_process, scratch_bytes
from fastflow.bench.table import columns_of, header, row, verdict
from fastflow.bench.timing import peak_memory, threads

OP = "gaussian_class_marginal"
ROWS, BLOCK = 512, 2**24  # of the errors: rows, and elements of [rows, K, D] at a time
ERROR, SCRATCH, SHARE = 2.0, 1e6, 0.05  # at most: times eager's, bytes on a CPU, of z's bytes on CUDA


def errors(case: Case, device: str) -> tuple[float, float]:
    """Of this library and of eager, nats."""
    given = gaussian.inputs(case, "fastflow", device)
    call, eager = (gaussian.PROVIDERS[OP].calls[name](case, given) for name in ("fastflow", "eager"))
    z, *parameters = given.arguments
    double = [parameter.double() for parameter in parameters]
    blocks = z[:ROWS].split(max(1, BLOCK // parameters[0].numel()))
    truth = torch.cat([eager(block.double(), *double)[0] for block in blocks])
    plain = torch.cat([eager(block, *parameters)[0] for block in blocks])
    own = call(z, *parameters)[0][:ROWS]
    return tuple((values - truth).abs().max().item() for values in (own, plain))


def scratch(case: Case, count: int, device: str) -> int:
    """Bytes."""
    if device == "cpu":
        return in_fresh_process(_scratch_here, case, count)
    call = prepare("fastflow", case, device)
    return peak_memory(call, device) - sum(tensor.nbytes for tensor in call())


def _scratch_here(case: Case, count: int) -> int:
    torch.set_num_threads(count)
    covariance = case.variant.partition("/")[2]
    small = replace(case, shape=(64, 16), variant=f"classes=2/{covariance}")
    return scratch_bytes(prepare("fastflow", case), prepare("fastflow", small))


def further(case: Case, count: int, device: str) -> dict:
    """The figures beside the speeds; `met` is {figure: whether its target is}."""
    with threads(count), _backend.backend(kernel_of(OP, device)):
        (own, eager), needed = errors(case, device), scratch(case, count, device)
    limit = SCRATCH if device == "cpu" else SHARE * case.elements * case.torch_dtype.itemsize
    return {"error": own, "eager_error": eager, "scratch_bytes": needed, "scratch_limit": limit,
            "met": {"error": own <= ERROR * eager, "scratch": needed <= limit}}


def line(found: dict) -> str:
    words = {figure: "reached" if met else "missed" for figure, met in found["met"].items()}
    ratio, (needed, limit) = found["error"] / found["eager_error"], (found["scratch_bytes"], found["scratch_limit"])
    return (f"    error {found['error']:.2g}, {ratio:.2f} x eager's (at most {ERROR:g}: {words['error']}); scratch "
            f"{needed / 1e6:.2f} MB (at most {limit / 1e6:.3g}: {words['scratch']})")


def measured(cases: list[Case], rivals: tuple[str, ...], counts: tuple[int, ...], device: str, seconds: float,
             show: Callable[[str], None]) -> list[dict]:
    """The results, shown as they come."""
    columns, results = columns_of(OP, rivals, device), []
    for count in counts:
        show(f"\n{OP}, {device}, {count} thread(s)\n{header(columns)}")
        for case in cases:
            result = next(run([case], rivals, [count], device=device, seconds=seconds))
            result |= further(case, count, device)
            show(f"{row(result, columns)}\n{line(result)}")
            results.append(result)
    return results


def main() -> None:
    parser = script.parser(__doc__, seconds=0.6, spent_on="each case")
    parser.add_argument("--quick", action="store_true", help="only the cases of `fastflow bench run`")
    parser.add_argument("--case", metavar="PATTERN", help="the cases whose name has this, like 4096x64/classes=10/*32")
    options = script.start(parser)
    cuda = options.device == "cuda"
    try:
        cases = lists.select(options.case, OP, full=not (options.quick or cuda), device=options.device)
    except ValueError as error:
        parser.error(str(error))
    cases = [case for case in cases if case.dtype != "float64"]
    if not cases:
        parser.error(f"--case {options.case} names float64 only, which is the truth here, expected float32")
    results = measured(cases, providers.CUDA_RIVALS if cuda else providers.DEFAULT_RIVALS,
                       tuple(options.threads[:1] if cuda else options.threads), options.device, options.seconds,
                       lambda text: print(text, flush=True))
    print(f"\n{verdict(results)}")
    for figure in ("error", "scratch"):
        print(f"{figure}: {sum(result['met'][figure] for result in results)} of {len(results)} reached")
    script.write(options, results=results)


if __name__ == "__main__":
    main()
