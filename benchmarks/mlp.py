"""How near to the CPU's rate is the op mlp, beside PyTorch's layers? `python benchmarks/mlp.py [--threads 1]`.

Conditioners D - H - H - 2 D with ReLU, called without gradients and in a training step (the gradients of the input and
of every parameter), interleaved. GF/s counts a multiply-add as two, and a step as three calls.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fastflow.bench import script
from fastflow.bench.timing import measure, threads
from fastflow.ops.mlp import mlp

WIDTHS = ((32, 32), (32, 128), (64, 256), (64, 512))  # D, H
ROWS = (16, 64, 1024, 16384)


def layers(features: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, 2 * features))


def call(net, x: Tensor, parameters: list[Tensor], grad: Tensor | None) -> object:
    if grad is None:
        with torch.no_grad():
            return net(x)
    return torch.autograd.grad(net(x), [x, *parameters], grad)


def main() -> None:
    parser = script.parser(__doc__, seconds=2, spent_on="each size and kind of call")
    parser.set_defaults(device="cpu")
    options = script.start(parser)
    if options.device != "cpu":
        parser.error("--device is cuda, expected cpu: on CUDA mlp is PyTorch's own layers")
    results = []
    for count in options.threads:
        print(f"\n{count} thread(s)")
        for features, hidden in WIDTHS:
            for rows in ROWS:
                net = layers(features, hidden)
                parameters = list(net.parameters())
                x = torch.randn(rows, features, requires_grad=True)
                flops = 2 * rows * sum(each.numel() for each in parameters if each.dim() == 2)
                for kind, grad, calls in (("forward", None, 1), ("training", torch.randn(rows, 2 * features), 3)):
                    with threads(count):
                        timings, disturbance = measure({
                            who: partial(call, run, x, parameters, grad)
                            for who, run in (("eager", net), ("mlp", partial(mlp, parameters=parameters)))
                        }, options.seconds)
                    eager, own = timings["eager"].seconds, timings["mlp"].seconds
                    print(f"{features:3d} - {hidden:3d} - {hidden:3d} - {2 * features:3d}  B {rows:6d}  {kind:8s} "
                          f"{1e6 * eager:9.0f} -> {1e6 * own:9.0f} us {eager / own:6.2f}x "
                          f"{calls * flops / own / 1e9:6.0f} GF/s  {disturbance.reason}".rstrip(), flush=True)
                    results.append({"threads": count, "features": features, "hidden": hidden, "rows": rows,
                                    "kind": kind, "eager": eager, "mlp": own, "disturbed": disturbance.reason})
    script.write(options, results=results)


if __name__ == "__main__":
    main()
