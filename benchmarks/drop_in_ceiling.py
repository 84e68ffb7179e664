"""How much faster could arithmetic alone become? `python benchmarks/drop_in_ceiling.py [--threads 1]`.

The models of drop_in.py with `H = 0`, whose conditioners are stored tensors: a training step as they are, fused, and
fused with couplings that compute nothing, so that what is left is PyTorch's: the graph, Python, the conditioners'
copies. No kernel can do better than that.
"""

import sys
from contextlib import contextmanager
from functools import partial

import torch
from drop_in import couplings, started, step, trained
from torch import Tensor

from fastflow.bench import script
from fastflow.bench.timing import measure, threads

SUBJECTS = ("nflows", "normflows exp", "normflows sigmoid", "normflows masked", "FrEIA GLOW", "FrEIA RNVP", "zuko")


def nothing(x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x))


def nothing_back(grad_z: Tensor, grad_log_det: Tensor, saved: Tensor, scale: Tensor, *arguments) -> tuple:
    return torch.empty_like(saved), scale.new_empty(len(scale), 2 * scale.shape[1]), scale.new_empty(0)


@contextmanager
def couplings_that_compute_nothing():
    coupling = sys.modules["fastflow.ops.affine_coupling"]
    forward, backward = coupling._forward.dispatch, coupling._backward.dispatch
    coupling._forward.dispatch, coupling._backward.dispatch = nothing, nothing_back
    try:
        yield
    finally:
        coupling._forward.dispatch, coupling._backward.dispatch = forward, backward


def empty_step(*arguments) -> tuple:
    with couplings_that_compute_nothing():
        return step(*arguments)


def main() -> None:
    parser = script.parser(__doc__, seconds=3, spent_on="each model")
    options = script.start(parser)
    if options.device != "cpu":
        parser.error("--device is cuda, expected cpu")
    results = []
    for count in options.threads:
        print(f"\n{count} thread(s): ms of a training step")
        for name in SUBJECTS:
            subject = couplings(0)[f"{name} H=0"]
            models, x = started(subject)
            calls = {who: partial(step, subject.encode, model, x, trained(model)) for who, model in models.items()}
            calls["nothing"] = partial(empty_step, *calls["fused"].args)
            with threads(count):
                timings, disturbance = measure(calls, options.seconds)
            eager, fused, least = (timings[who].seconds for who in ("eager", "fused", "nothing"))
            line = (f"{name:18s} eager {1e3 * eager:6.2f}  fused {1e3 * fused:6.2f}  {eager / fused:5.2f}x  "
                    f"computing nothing {1e3 * least:6.2f}  {eager / least:5.2f}x  {disturbance.reason}")
            print(line.rstrip(), flush=True)
            results.append({"model": name, "threads": count, "eager": eager, "fused": fused, "nothing": least,
                            "disturbed": disturbance.reason})
    script.write(options, results=results)


if __name__ == "__main__":
    main()
