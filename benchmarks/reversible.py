"""What does reversible training cost, and save? `python benchmarks/reversible.py [--threads 2]`.

Stacks of couplings (64 features, perceptrons of width 128, 4096 rows), one training step each, interleaved: time, and
the live memory at its peak beyond parameter gradients and kept states, by the profiler's allocation records.
"""

import argparse

import torch
from torch import nn
from training_steps import compare

from fastflow.bench.timing import threads
from fastflow.nn import AffineCoupling, FlowSequential, Split

FEATURES, WIDTH, ROWS, KEEP_EVERY = 64, 128, 4096, 16
MODES = {
    "recorded": {}, "checkpointed conditioners": {"checkpoint": "conditioner"},
    "reversible": {"reversible": True, "keep_every": KEEP_EVERY},
}


def coupling(index: int) -> AffineCoupling:
    net = nn.Sequential(nn.Linear(FEATURES // 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
                        nn.Linear(WIDTH, FEATURES))
    return AffineCoupling(net, Split.halves("second" if index % 2 else "first"))


def training_step(depth: int, mode: str):
    """(one step's gradients, the bytes of these and of kept states)."""
    torch.manual_seed(0)
    flow = FlowSequential([coupling(index) for index in range(depth)], (FEATURES,), **MODES[mode])
    parameters, x = list(flow.parameters()), torch.randn(ROWS, FEATURES)

    def step():
        z, log_det = flow(x)
        return torch.autograd.grad(z.square().mean() - log_det.mean(), parameters)

    kept = -(-depth // KEEP_EVERY) * ROWS * (FEATURES + 1) if mode == "reversible" else 0
    return step, 4 * (kept + sum(parameter.numel() for parameter in parameters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="spent on each depth (default 20)")
    options = parser.parse_args()
    with threads(options.threads):
        for depth in (4, 64):
            steps = {mode: training_step(depth, mode) for mode in MODES}
            measured, disturbance = compare(steps, options.seconds)
            print(f"\n{depth} couplings, {options.threads} thread(s) {disturbance.reason}")
            for mode, (timing, live) in measured.items():
                ratio = timing.seconds / measured["recorded"].timing.seconds
                print(f"{mode:26s} {1e3 * timing.seconds:8.1f} ms  {ratio:5.2f} x  {live / 1e6:8.1f} MB live")


if __name__ == "__main__":
    main()
