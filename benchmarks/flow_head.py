"""What does SCNF's class head cost beside the batch repeated K times? `python benchmarks/flow_head.py [--device cuda]`.

log p(z) of B rows under all K classes by the published head (196 features, hidden 256, four blocks), forward and a
training step, interleaved, on the same weights:

    head      `FlowClassHead.marginal`
    repeated  the shortest PyTorch: every row K times, its class one-hot beside it, layer by layer
    compiled  torch.compile of that; of a training step on CUDA only, where a figure asks for it

fp32 is without TF32, bf16 is autocast, for all three alike. Before anything is timed the head is held to twice the
error of `repeated` against float64. `live` is what a training step allocates at its peak, less all the gradients that
it returns: of `repeated`, which peaks before it has these, too little. Scratch is that of the head's first forward in
a fresh process, by its pages (fastflow/bench/scratch.py), the weights' packed copies included. Verdicts are printed at
the sizes of the figures, which are the default.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_steps import compare

from fastflow.bench import script, watching
from fastflow.bench.overhead import as_proved
from fastflow.bench.scratch import in_fresh_process, scratch_bytes
from fastflow.bench.timing import measure, threads
from fastflow.models.trunks import conditional_flow
from fastflow.nn import ActNorm, AffineCoupling, ChannelMix, FactorOut, FlowClassHead

FEATURES = 196
REPEATED_PAIRS = 2**16  # beyond that many (row, class) a training step of `repeated` would keep over 10 GB
CHECKED_PAIRS = 640


class Repeated(nn.Module):
    """log p(z) [B] by the parameters of a head."""

    def __init__(self, head: FlowClassHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        head, rows = self.head, z.shape[0]
        x, context = z.repeat_interleave(head.classes, 0), head.embedding.repeat(rows, 1)
        log_det, left = x.new_zeros(len(x)), []
        for layer in head.flow.layers:
            if isinstance(layer, ActNorm):
                x = (x - layer.shift) * layer.log_scale.exp()
                log_det = log_det + layer.log_scale.sum()
            elif isinstance(layer, ChannelMix):
                x = F.linear(x, layer.weight)
                log_det = log_det + torch.linalg.slogdet(layer.weight).logabsdet
            elif isinstance(layer, FactorOut):
                piece, x = x.chunk(2, 1)
                left.append(piece)
            else:
                x, own = _coupled(layer, x, context)
                log_det = log_det + own
        scale = F.softplus(head.base.rho)
        log_base = torch.distributions.Normal(0.0, scale, validate_args=False).log_prob(torch.cat([*left, x], 1)).sum(1)
        return ((log_det + log_base).view(rows, -1) + head.prior.log_prob()).logsumexp(1)


def _coupled(layer: AffineCoupling, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, 1)
    active, passive = (first, second) if layer.split.active == "first" else (second, first)
    net = layer.conditioner
    h = net.input(torch.cat([passive, context], 1))
    for block in net.blocks:
        h = h + block.second(torch.relu(block.first(torch.relu(h))))
    h = (h - net.norm.shift) * net.norm.log_scale.exp()
    s, t = net.output(torch.relu(h)).chunk(2, 1)
    c = torch.sigmoid(s + 2) + 1e-6
    active = (active + t) * c
    halves = [active, passive] if layer.split.active == "first" else [passive, active]
    return torch.cat(halves, 1), c.log().sum(1)


class Figure(NamedTuple):
    """`part`, `quantity` of `of`, divided by those of `over` if given, is to be at least or at most `bound`."""

    name: str
    part: str
    quantity: str
    of: str
    over: str | None
    relation: str
    bound: float


# {(device, rows, classes): figures of the issue}
FIGURES = {
    ("cpu", 256, 10): (
        Figure("forward fp32, times compile's speed", "forward", "seconds", "compiled fp32", "head fp32", ">=", 1.2),
        Figure("forward bf16, times fp32 compile's", "forward", "seconds", "compiled fp32", "head bf16", ">=", 1.8),
        Figure("forward, scratch in MB", "scratch", "MB", "head fp32", None, "<=", 2.5),
        Figure("training, times less live memory", "training", "live MB", "repeated fp32", "head fp32", ">=", 8.0),
        Figure("training, times repeated's time", "training", "seconds", "head fp32", "repeated fp32", "<=", 1.35),
    ),
    ("cuda", 4096, 1000): tuple(
        Figure(f"training {precision}, peak in MB", "training", "peak MB", f"head {precision}", None, "<=", 20e3)
        for precision in ("fp32", "bf16")),
} | {
    ("cuda", rows, 10): tuple(
        figure for precision in ("fp32", "bf16") for figure in (
            Figure(f"training {precision}, times repeated's speed", "training", "seconds", f"repeated {precision}",
                   f"head {precision}", ">=", repeated),
            Figure(f"training {precision}, times compile's speed", "training", "seconds", f"compiled {precision}",
                   f"head {precision}", ">=", compiled),
            Figure(f"training {precision}, share of live memory", "training", "live MB", f"head {precision}",
                   f"repeated {precision}", "<=", 0.1)))
    for rows, repeated, compiled in ((256, 5.0, 2.0), (4096, 3.0, 1.5))
}


def verdicts(size: tuple[str, int, int], found: dict) -> Iterator[str]:
    """A line for each figure of this size; `found` {part: {who: {quantity: number}}}."""
    for figure in FIGURES.get(size, ()):
        values = [found.get(figure.part, {}).get(who, {}).get(figure.quantity)
                  for who in (figure.of, figure.over) if who]
        if None in values:
            yield f"{figure.name}: not measured"
            continue
        value = values[0] / values[1] if figure.over else values[0]
        met = value >= figure.bound if figure.relation == ">=" else value <= figure.bound
        yield f"{figure.name}: {value:.3g} {figure.relation} {figure.bound:g} {'reached' if met else 'missed'}"


def started_head(classes: int, device: str = "cpu", features: int = FEATURES, **sizes: int) -> FlowClassHead:
    """A head whose norms have started and none of whose weights are zero, or a conditioner's work could be left out."""
    torch.manual_seed(0)
    head = FlowClassHead(conditional_flow(features, classes, **sizes), features, classes)
    with torch.no_grad():
        head.initialize(torch.randn(32, features))
        for parameter in head.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return head.to(device)


def autocast(device: str, precision: str):
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def check(head: FlowClassHead, z: Tensor, precision: str) -> str:
    """What the errors against float64 are; raises SystemExit if the head's exceeds twice that of `repeated`."""
    z = z[: max(1, CHECKED_PAIRS // head.classes)]
    with torch.no_grad():
        truth = Repeated(deepcopy(head).double())(z.double())
        with autocast(z.device.type, precision):
            own, plain = ((values - truth).abs().max().item() for values in (head.marginal(z), Repeated(head)(z)))
    line = f"{precision}: error {own:.2g} nats, repeated's {plain:.2g}, of log p up to {truth.abs().max():.0f}"
    if not own <= 2 * plain + 4 * torch.finfo(torch.float32).eps * truth.abs().max():
        raise SystemExit(f"{line}: expected at most twice as much")
    return line


def compiled(call: Callable) -> Callable:
    return torch.compile(call, fullgraph=True, dynamic=False)


def calls(head: FlowClassHead, z: Tensor, precisions: list[str], training: bool, compiling: bool,
          ) -> dict[str, Callable]:
    """{who and precision: the call}: log p(z), or the gradients of its mean for every parameter."""
    pairs, parameters = len(z) * head.classes, list(head.parameters())
    marginals = {"head": head.marginal}
    if pairs <= REPEATED_PAIRS:
        marginals["repeated"] = Repeated(head)
    if pairs <= REPEATED_PAIRS and compiling:
        torch._dynamo.reset()  # compiled afresh for each number of threads
        marginals["compiled"] = compiled(Repeated(head))

    def forward(marginal: Callable, precision: str) -> Tensor:
        with torch.no_grad(), autocast(z.device.type, precision):
            return marginal(z)

    def step(marginal: Callable, precision: str) -> tuple[Tensor, ...]:
        with autocast(z.device.type, precision):
            loss = -marginal(z).mean()
        return torch.autograd.grad(loss, parameters)

    return {f"{who} {precision}": partial(step if training else forward, marginal, precision)
            for who, marginal in marginals.items() for precision in precisions}


def scratch_here(rows: int, classes: int, count: int, precision: str) -> int:
    """Bytes of the head's first forward in this process."""
    torch.set_num_threads(count)
    head, z = started_head(classes), torch.randn(rows, FEATURES)
    small, few = started_head(2, features=8, levels=1, steps=1, hidden=16, blocks=1), torch.randn(4, 8)
    with torch.no_grad(), autocast("cpu", precision):
        return scratch_bytes(lambda: head.marginal(z), lambda: small.marginal(few))


def measured(head: FlowClassHead, z: Tensor, precisions: list[str], seconds: float, compiling: bool) -> dict:
    """{part: {who: {quantity: number}}, "disturbed": why it is not to be trusted}."""
    device = z.device.type
    forward, disturbance = measure(calls(head, z, precisions, False, compiling), seconds, device)
    found = {"forward": {who: {"seconds": timing.seconds, "spread": timing.spread} for who, timing in forward.items()}}
    gradients = sum(parameter.nbytes for parameter in head.parameters())
    steps = calls(head, z, precisions if device == "cuda" else ["fp32"], True, compiling and device == "cuda")
    training, disturbance_training = compare({who: (step, gradients) for who, step in steps.items()}, seconds, device)
    found["training"] = {
        who: {"seconds": timing.seconds, "spread": timing.spread, "live MB": live / 1e6,
              "peak MB": (live + gradients) / 1e6} for who, (timing, live) in training.items()}
    return found | {"disturbed": disturbance.reason or disturbance_training.reason}


def show(found: dict) -> None:
    for part in ("forward", "training"):
        first = next(iter(found[part].values()))["seconds"]
        for who, values in found[part].items():
            memory = (f"  {values['live MB']:9.1f} MB live of {values['peak MB']:9.1f}" if part == "training" else "")
            print(f"{part:9s} {who:14s} {1e3 * values['seconds']:9.2f} ms  {values['seconds'] / first:6.2f} x the first"
                  f"  (spread {values['spread']:.0%}){memory}")
    for who, values in found.get("scratch", {}).items():
        print(f"scratch   {who:14s} {values['MB']:9.2f} MB")


def main() -> None:
    parser = script.parser(__doc__, seconds=10, spent_on="each of forward and training")
    parser.add_argument("--rows", type=int, help="B (default: the sizes of the figures)")
    parser.add_argument("--classes", type=int, default=10, help="K, with --rows (default 10)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    options = script.start(parser)
    device, cuda = options.device, options.device == "cuda"
    torch.backends.fp32_precision = "ieee"
    sizes = [(options.rows, options.classes)] if options.rows else [size[1:] for size in FIGURES if size[0] == device]
    results = []
    for rows, classes in sizes:
        head, z = started_head(classes, device), torch.randn(rows, FEATURES, device=device)
        for count in options.threads[:1] if cuda else options.threads:
            print(f"\n{rows} rows, {classes} classes, {device}" + ("" if cuda else f", {count} thread(s)"))
            with threads(count), as_proved() if cuda else nullcontext():
                for precision in options.precision:
                    print(check(head, z, precision))
                with watching.watch(device) as served:
                    head.marginal(z[:1])
                print("served: " + ", ".join(f"{op} by {backend}" for op, backend in served.items()))
                found = measured(head, z, options.precision, options.seconds, not options.no_compile)
            if not cuda:
                found["scratch"] = {
                    f"head {precision}": {"MB": in_fresh_process(scratch_here, rows, classes, count, precision) / 1e6}
                    for precision in options.precision}
            show(found)
            print("\n".join([*verdicts((device, rows, classes), found), found["disturbed"]]).rstrip(), flush=True)
            results.append({"rows": rows, "classes": classes, "threads": count, "served": served, **found})
    script.write(options, results=results)


if __name__ == "__main__":
    main()
