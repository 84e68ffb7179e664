"""What does fusing the steps of a Glow save? `python benchmarks/glow_steps.py [--threads 1]`.

Stacks of norm, mix and coupling with a conditioner that costs next to nothing: the walk that FlowSequential takes by
itself beside the same layers called one by one, which a hook on each makes it do. Forward alone and a training step,
interleaved; live memory at its peak, by the profiler's allocation records.
"""

import argparse

import torch
from torch import Tensor, nn
from training_steps import compare

from fastflow.bench import malloc
from fastflow.bench.timing import threads
from fastflow.nn import ActNorm, AffineCoupling, ChannelMix, FlowSequential

STACKS = {(256, 24, 14, 14): 4, (256, 4, 14, 14): 4, (4096, 64): 4, (32, 16): 8}  # shape of x: steps


class Doubled(nn.Module):
    """Scale and shift that are the passive half, damped."""

    def forward(self, passive: Tensor) -> Tensor:
        return torch.cat([passive, passive], 1) * 0.1


def stack(shape: tuple[int, ...], steps: int, fused: bool) -> FlowSequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(steps) for layer in (
        ActNorm(shape[1]), ChannelMix(shape[1], weight=torch.linalg.qr(torch.randn(shape[1], shape[1])).Q),
        AffineCoupling(Doubled()))]
    for layer in [] if fused else layers:
        layer.register_forward_hook(lambda *_: None)
    return FlowSequential(layers, shape[1:])


def call(flow: FlowSequential, x: Tensor, training: bool):
    parameters = list(flow.parameters())

    def forward():
        with torch.no_grad():
            return flow(x)

    def step():
        z, log_det = flow(x)
        return torch.autograd.grad(z.square().mean() - log_det.mean(), parameters)

    return step if training else forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4, help="spent on each stack and direction (default 4)")
    options = parser.parse_args()
    malloc.ensure_tuned()
    with threads(options.threads):
        for shape, steps in STACKS.items():
            x = torch.randn(shape)
            for training in (False, True):
                calls = {name: (call(stack(shape, steps, name == "fused"), x, training), 0)
                         for name in ("fused", "one by one")}
                measured, disturbance = compare(calls, options.seconds)
                (fused, fused_live), (plain, plain_live) = measured["fused"], measured["one by one"]
                print(f"{'x'.join(map(str, shape)):>14s} x {steps}  {'training' if training else 'forward ':8s} "
                      f"{1e3 * fused.seconds:7.2f} ms, {plain.seconds / fused.seconds:4.2f} x one by one; "
                      f"live {fused_live / 1e6:6.1f} MB, {fused_live / plain_live:4.2f} x  {disturbance.reason}")


if __name__ == "__main__":
    main()
