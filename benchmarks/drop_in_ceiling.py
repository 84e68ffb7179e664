"""How much faster could arithmetic alone become? `python benchmarks/drop_in_ceiling.py [--threads 1]`.

The models of drop_in.py with `H = 0`, whose conditioners are stored tensors: a training step as they are, fused, and
fused with kernels that compute nothing, so that what is left is PyTorch's: the graph, Python, the conditioners' copies.
No kernel can do better than that.
"""

from contextlib import contextmanager
from functools import partial

import torch
from drop_in import couplings, started, step, trained
from torch import Tensor

from fastflow.bench import script, watching
from fastflow.bench.timing import measure, threads


def _back(grad_z: Tensor, grad_log_det: Tensor, saved: Tensor, scale: Tensor, *arguments) -> tuple[Tensor, ...]:
    return torch.empty_like(saved), scale.new_empty(len(scale), 2 * scale.shape[1]), scale.new_empty(0)


NOTHING = {
    "affine_coupling": lambda x, *arguments: (torch.empty_like(x), x.new_empty(len(x))),
    "affine_coupling_backward": _back,
    "act_norm": lambda x, *arguments: (torch.empty_like(x), x.new_empty(len(x))),
    "act_norm_backward": lambda grad_z, grad_log_det, saved, shift, log_scale, *arguments: (
        torch.empty_like(saved), torch.empty_like(shift), torch.empty_like(log_scale)),
    "permute_columns": lambda x, order: torch.empty_like(x),
}


@contextmanager
def kernels_that_compute_nothing():
    """Empty results instead of these ops' kernels, whichever way they are called."""
    ops = {name: watching.ops()[name] for name in NOTHING}
    real = {name: op.dispatch for name, op in ops.items()}
    try:
        for name, op in ops.items():
            op.dispatch = getattr(torch.ops.fastflow, name).default = NOTHING[name]
        yield
    finally:
        for name, op in ops.items():
            op.dispatch = getattr(torch.ops.fastflow, name).default = real[name]


def empty_step(*arguments) -> tuple:
    with kernels_that_compute_nothing():
        return step(*arguments)


def main() -> None:
    parser = script.parser(__doc__, seconds=3, spent_on="each model")
    options = script.start(parser)
    if options.device != "cpu":
        parser.error("--device is cuda, expected cpu")
    results = []
    for count in options.threads:
        print(f"\n{count} thread(s): ms of a training step")
        for name, subject in couplings(0).items():
            models, x = started(subject)
            calls = {who: partial(step, subject.encode, model, x, trained(model)) for who, model in models.items()}
            calls["nothing"] = partial(empty_step, *calls["fused"].args)
            with threads(count):
                timings, disturbance = measure(calls, options.seconds)
            eager, fused, least = (timings[who].seconds for who in ("eager", "fused", "nothing"))
            line = (f"{name:22s} eager {1e3 * eager:6.2f}  fused {1e3 * fused:6.2f}  {eager / fused:5.2f}x  "
                    f"computing nothing {1e3 * least:6.2f}  {eager / least:5.2f}x  {disturbance.reason}")
            print(line.rstrip(), flush=True)
            results.append({"model": name, "threads": count, "eager": eager, "fused": fused, "nothing": least,
                            "disturbed": disturbance.reason})
    script.write(options, results=results)


if __name__ == "__main__":
    main()
