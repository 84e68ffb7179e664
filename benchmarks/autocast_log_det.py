"""What does bf16 autocast cost log_det? `python benchmarks/autocast_log_det.py [--device cuda]`.

Stacks of couplings (64 features, perceptrons of width 128), each evaluated in float64 and in three ways whose
conditioners run in bf16, and so make the same error; the rest of the error is the coupling's arithmetic:

    fastflow  the stack under `torch.autocast`, as a user runs it
    float32   the formulas in float32 on the conditioner's bf16 output: what autocast should cost
    bf16      the formulas as they stand in nflows, on that output: c, log c and their sum in bf16 (x stays float32)

Printed: the root mean square over rows of the error of log_det in nats, its ratio to that of float32, and the bias.
"""

import argparse
import copy

import torch
from torch import Tensor, nn

from fastflow.nn import AffineCoupling, FlowSequential, Split
from fastflow.ops import ScaleMap

FEATURES, WIDTH, ROWS, DEPTHS = 64, 128, 4096, (4, 16)
SCALE_MAP = ScaleMap("sigmoid", bias=2.0, eps=1e-3)
BOUND = 1.1  # of the ratio of fastflow to float32


def stack(depth: int) -> FlowSequential:
    """Couplings of alternating halves, nflows' form, with log-scales of about -0.5 to 0."""
    layers = []
    for index in range(depth):
        net = nn.Sequential(nn.Linear(FEATURES // 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, FEATURES))
        nn.init.normal_(net[-1].weight, std=1.5 / WIDTH**0.5)
        split = Split.halves("second" if index % 2 else "first")
        layers.append(AffineCoupling(net, split, SCALE_MAP))
    return FlowSequential(layers, (FEATURES,))


def plain(flow: FlowSequential, x: Tensor, dtype: torch.dtype) -> Tensor:
    """log_det [B] float32 of the same stack, its conditioners under autocast, its couplings written out in `dtype`."""
    log_det = torch.zeros(len(x), device=x.device)
    for layer in flow.layers:
        with torch.autocast(x.device.type, torch.bfloat16):
            made = layer.conditioner(layer.split.passive_part(x))
        scale, shift = made.to(dtype).chunk(2, dim=1)
        c = torch.sigmoid(scale + SCALE_MAP.bias) + SCALE_MAP.eps
        log_det = log_det + c.log().sum(1)
        active = layer.split.active_slice(FEATURES)
        x = x.slice_scatter(x[:, active] * c + shift, 1, active.start, active.stop)
    return log_det


@torch.no_grad()
def errors(depth: int, device: str = "cpu") -> dict[str, Tensor]:
    """The error of log_det [B] of each way, float64."""
    torch.manual_seed(depth)
    flow, x = stack(depth).to(device), torch.randn(ROWS, FEATURES).to(device)
    truth = copy.deepcopy(flow).double()(x.double())[1]
    with torch.autocast(device, torch.bfloat16):
        ours = flow(x)[1]
    ways = {"fastflow": ours, "float32": plain(flow, x, torch.float32), "bf16": plain(flow, x, torch.bfloat16)}
    return {name: log_det.double() - truth for name, log_det in ways.items()}


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    for depth in DEPTHS:
        found = errors(depth, options.device)
        for way, error in found.items():
            print(f"{depth:2d} couplings  {way:8s}  rms {rms(error):.2e}  {rms(error) / rms(found['float32']):5.2f} x  "
                  f"bias {error.mean().item():+.1e} nats")
    print(f"expected of fastflow: at most {BOUND} x")


if __name__ == "__main__":
    main()
