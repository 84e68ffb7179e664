"""What does `fastflow.fuse` save in models of other libraries? `python benchmarks/drop_in.py [--device cuda]`.

Eight affine couplings (four of FrEIA's two-sided blocks) of 64 features with an MLP 32 - H - H - 64 each, as they are
and fused, interleaved, on the same weights: a training step (log p of a standard normal base, backward for every
parameter) and the way back from latents to data, which is what sampling costs. `H = 0` is a stored tensor in place of
the MLP, which leaves the arithmetic of the couplings. Steps of Glow on images, the inverse of a lower-upper linear map
and of a masked autoregressive layer are the other hot spots.

`difference` is the largest one between the two results of the way there and back, relative to the largest value;
`live` is what a training step allocates at its peak. Verdicts are those of the figures that the project has set itself.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import FrEIA.framework
import FrEIA.modules
import nflows.nn.nets
import nflows.transforms
import normflows
import torch
import zuko
from torch import Tensor, nn
from training_steps import compare

import fastflow
from fastflow.bench import script
from fastflow.bench.overhead import as_proved
from fastflow.bench.timing import measure, threads
from fastflow.fusion import swap

FEATURES, LAYERS = 64, 8
IMAGE = (12, 16, 16)
HALF = FEATURES // 2
ROWS = 1024  # of the figures


class Stored(nn.Module):
    """A conditioner that costs a copy."""

    def __init__(self, rows: int, outputs: int) -> None:
        super().__init__()
        self.made = nn.Parameter(0.3 * torch.randn(rows, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.made.clone()


class WithoutContext(nn.Module):
    """Takes nflows' context and ignores it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)


def conditioner(hidden: int, rows: int, inputs: int, outputs: int) -> nn.Module:
    if hidden == 0:
        return Stored(rows, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, outputs))


def convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
                         nn.Conv2d(64, outputs, 3, padding=1))


class Subject(NamedTuple):
    """A model, and how its library is called: encode(model, x) -> (z, log_det), decode(model, z) -> (x, log_det)."""

    make: Callable[[], nn.Module]
    encode: Callable[[nn.Module, Tensor], tuple]
    decode: Callable[[nn.Module, Tensor], tuple]
    shape: tuple[int, ...]


_nflows = partial(Subject, encode=lambda m, x: m(x), decode=lambda m, z: m.inverse(z))
_normflows = partial(Subject, encode=lambda m, x: m.inverse_and_log_det(x),
                     decode=lambda m, z: m.forward_and_log_det(z))
_freia = partial(Subject, encode=lambda m, x: m(x), decode=lambda m, z: m(z, rev=True))
_zuko = partial(Subject, encode=lambda m, x: m.transform().call_and_ladj(x),
                decode=lambda m, z: m.transform().inv.call_and_ladj(z))


def nflows_couplings(net: Callable) -> nn.Module:
    transforms = nflows.transforms
    return transforms.CompositeTransform([
        transforms.AffineCouplingTransform((torch.arange(FEATURES) + layer) % 2,
                                           lambda inputs, outputs: WithoutContext(net(inputs, outputs)))
        for layer in range(LAYERS)])


def normflows_couplings(net: Callable, scale_map: str) -> nn.Module:
    return normflows.NormalizingFlow(None, [
        normflows.flows.AffineCouplingBlock(net(HALF, FEATURES), scale_map=scale_map, split_mode=split_mode)
        for split_mode in ("channel", "channel_inv") * (LAYERS // 2)])


def normflows_masked(net: Callable) -> nn.Module:
    return normflows.NormalizingFlow(None, [
        normflows.flows.MaskedAffineFlow(((torch.arange(FEATURES) + layer) % 2).float(), net(FEATURES, FEATURES),
                                         net(FEATURES, FEATURES)) for layer in range(LAYERS)])


def freia_blocks(net: Callable, block: type, count: int) -> nn.Module:
    inn = FrEIA.framework.SequenceINN(FEATURES)
    for _ in range(count):
        inn.append(block, subnet_constructor=net)
    return inn


def zuko_couplings(hidden: int, rows: int) -> nn.Module:
    flow = zuko.flows.RealNVP(FEATURES, transforms=LAYERS, hidden_features=(hidden or 1,) * 2)
    for layer in flow.transform.transforms if hidden == 0 else ():
        layer.hyper = Stored(rows, FEATURES)
    return flow


def couplings(hidden: int, rows: int = ROWS) -> dict[str, Subject]:
    net, blocks = partial(conditioner, hidden, rows), FrEIA.modules
    shape = (rows, FEATURES)
    found = {
        "nflows": _nflows(partial(nflows_couplings, net), shape=shape),
        "normflows exp": _normflows(partial(normflows_couplings, net, "exp"), shape=shape),
        "normflows sigmoid": _normflows(partial(normflows_couplings, net, "sigmoid"), shape=shape),
        "normflows masked": _normflows(partial(normflows_masked, net), shape=shape),
        "FrEIA GLOW": _freia(partial(freia_blocks, net, blocks.GLOWCouplingBlock, LAYERS // 2), shape=shape),
        "FrEIA RNVP": _freia(partial(freia_blocks, net, blocks.RNVPCouplingBlock, LAYERS // 2), shape=shape),
        "FrEIA AllInOne": _freia(partial(freia_blocks, net, blocks.AllInOneBlock, LAYERS), shape=shape),
        "zuko": _zuko(partial(zuko_couplings, hidden, rows), shape=shape),
    }
    return {f"{name} H={hidden}": subject for name, subject in found.items()}


def glow_nflows() -> nn.Module:
    channels, t = IMAGE[0], nflows.transforms
    return t.CompositeTransform([t.ActNorm(channels), t.OneByOneConvolution(channels),
                                 t.AffineCouplingTransform(torch.arange(channels) % 2,
                                                           lambda *ends: WithoutContext(convolutions(*ends)))])


def glow_normflows() -> nn.Module:
    return normflows.NormalizingFlow(None, [normflows.flows.GlowBlock(IMAGE[0], 64, init_zeros=False)])


def glow_freia() -> nn.Module:
    inn = FrEIA.framework.SequenceINN(*IMAGE)
    inn.append(FrEIA.modules.AllInOneBlock, subnet_constructor=convolutions)
    return inn


def zuko_linear() -> nn.Module:
    weight = torch.eye(FEATURES) + 0.05 * torch.randn(FEATURES, FEATURES)
    return zuko.lazy.Flow(zuko.lazy.UnconditionalTransform(zuko.transforms.LULinearTransform, weight),
                          zuko.lazy.UnconditionalDistribution(torch.distributions.Normal, 0.0, 1.0))


def hot_spots(rows: int = ROWS) -> dict[str, Subject]:
    images, batch, large, t = (64, *IMAGE), (rows, FEATURES), (4 * rows, FEATURES), nflows.transforms
    return {
        "nflows Glow": _nflows(glow_nflows, shape=images),
        "normflows Glow": _normflows(glow_normflows, shape=images),
        "FrEIA Glow": _freia(glow_freia, shape=images),
        "nflows LU": _nflows(lambda: t.LULinear(FEATURES, identity_init=False), shape=large),
        "zuko LU": _zuko(zuko_linear, shape=large),
        "nflows MAF": _nflows(lambda: t.MaskedAffineAutoregressiveTransform(FEATURES, FEATURES), shape=batch),
        "normflows MAF": _normflows(lambda: normflows.NormalizingFlow(None, [  # whose own density is the slow way
            normflows.flows.MaskedAffineAutoregressive(FEATURES, FEATURES)]), shape=batch),
        "zuko MAF": _zuko(lambda: zuko.flows.MAF(FEATURES, transforms=1, hidden_features=(FEATURES, FEATURES)),
                          shape=batch),
    }


def bound(name: str, part: str) -> float | None:
    """How many times eager's speed the figures want."""
    fast = name.startswith(("nflows", "zuko", "FrEIA AllInOne"))
    if part == "inverse training":
        return 10.0 if name == "zuko LU" else None
    if name.endswith("MAF"):
        slow = "training" if name.startswith("normflows") else "inverse"
        return 5.0 if part == slow else None
    _, found, hidden = name.partition(" H=")
    if not found:
        return 1.0
    return {"0": 3.0, "32": 1.5 if fast else 1.25}.get(hidden, 1.2 if fast else 1.0)


def perturbed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return model


def step(run: Callable, model: nn.Module, x: Tensor, parameters: list[Tensor]) -> tuple:
    """Gradients of -log p under a standard normal base, of the mean over rows, for these parameters."""
    z, log_det = run(model, x)
    z = z[0] if isinstance(z, tuple | list) else z
    loss = 0.5 * z.square().sum() / len(x) - torch.as_tensor(log_det).mean()
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def trained(model: nn.Module) -> list[Tensor]:
    return [each for each in model.parameters() if each.requires_grad]


def without_gradients(run: Callable, model: nn.Module, x: Tensor) -> tuple:
    with torch.no_grad():
        return run(model, x)


def difference(subject: Subject, models: dict[str, nn.Module], x: Tensor) -> float:
    found = []
    for model in models.values():
        z, _ = without_gradients(subject.encode, model, x)
        z = z[0] if isinstance(z, tuple | list) else z
        found.append([z, *(torch.as_tensor(each) for each in without_gradients(subject.decode, model, x)[1:])])
    return max(((one - other).abs().max() / other.abs().max().clamp(min=1)).item()
               for one, other in zip(*found, strict=True))


def started(subject: Subject, device: str = "cpu") -> tuple[dict[str, nn.Module], Tensor]:
    """The model as it is and fused, which have seen a batch, and x."""
    torch.manual_seed(0)
    x = torch.randn(*subject.shape, device=device)
    eager = perturbed(subject.make()).to(device)
    without_gradients(subject.encode, eager, x)  # data-dependent layers start
    return {"eager": eager, "fused": fastflow.fuse(deepcopy(eager))}, x


def measured(name: str, subject: Subject, seconds: float, device: str) -> dict:
    """{part: {"eager" or "fused": {quantity: number}}, "difference", "disturbed"}."""
    models, x = started(subject, device)
    found: dict = {"difference": difference(subject, models, x), "disturbed": ""}
    gradients = sum(each.nbytes for each in trained(models["eager"]))
    runs = {"training": subject.encode}
    if name == "zuko LU":
        runs["inverse training"] = subject.decode
    for part, run in runs.items():
        steps, disturbance = compare({who: (partial(step, run, model, x, trained(model)), gradients)
                                      for who, model in models.items()}, seconds, device)
        found[part] = {who: {"seconds": timing.seconds, "spread": timing.spread, "live MB": live / 1e6}
                       for who, (timing, live) in steps.items()}
        found["disturbed"] = found["disturbed"] or disturbance.reason
    timings, disturbance = measure({who: partial(without_gradients, subject.decode, model, x)
                                    for who, model in models.items()}, seconds, device)
    found["inverse"] = {who: {"seconds": timing.seconds, "spread": timing.spread} for who, timing in timings.items()}
    found["disturbed"] = found["disturbed"] or disturbance.reason
    return found


def lines(name: str, found: dict) -> Iterator[str]:
    for part in ("training", "inverse training", "inverse"):
        if part not in found:
            continue
        eager, fused = (found[part][who] for who in ("eager", "fused"))
        ratio, wanted = round(eager["seconds"] / fused["seconds"], 2), bound(name, part)
        memory = f"  live {eager['live MB']:6.1f} -> {fused['live MB']:6.1f} MB" if "live MB" in eager else ""
        verdict = f"  >= {wanted:g} {'reached' if ratio >= wanted else 'missed'}" if wanted else ""
        yield (f"{name:22s} {part:17s} {1e3 * eager['seconds']:8.2f} -> {1e3 * fused['seconds']:8.2f} ms "
               f"{ratio:6.2f}x{verdict}{memory}")
    yield f"{name:22s} largest difference {found['difference']:.1e}  {found['disturbed']}".rstrip()


def main() -> None:
    parser = script.parser(__doc__, seconds=3, spent_on="each part of a model")
    parser.add_argument("--model", default="", help="only those whose name has this, like 'zuko' or 'H=32'")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"B (default {ROWS}, of the figures)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 32, 0], help="H (default 128 32 0)")
    options = script.start(parser)
    cuda = options.device == "cuda"
    found = {name: subject for hidden in options.hidden for name, subject in couplings(hidden, options.rows).items()}
    subjects = {name: subject for name, subject in (found | hot_spots(options.rows)).items() if options.model in name}
    if not subjects:
        parser.error(f"--model {options.model!r} is in no name, expected part of one like 'nflows H=32' or 'zuko LU'")
    results = []
    for count in options.threads[:1] if cuda else options.threads:
        print(f"\n{options.device}" + ("" if cuda else f", {count} thread(s)"))
        with threads(count), as_proved() if cuda else nullcontext():
            for name, subject in subjects.items():
                found = measured(name, subject, options.seconds, options.device)
                print("\n".join(lines(name, found)), flush=True)
                results.append({"model": name, "rows": options.rows, "threads": count, **found})
    script.write(options, libraries={name: version(name) for name in swap.TESTED}, results=results)


if __name__ == "__main__":
    main()
