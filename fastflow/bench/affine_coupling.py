"""The affine coupling as each provider computes it: this library, idiomatic PyTorch, other libraries' arithmetic.

`nflows` and `normflows` are not those packages: they are our rewrite of the tensor operations which the packages
dispatch for one coupling, index for index and copy for copy, without their modules. tests/test_bench.py counts them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.bench.cases import SCALE_MAPS, Case
from fastflow.bench.inputs import Inputs, Normal, OpProviders
from fastflow.ops import ScaleMap, affine_coupling, affine_coupling_packed
from fastflow.ops.packing import PACKINGS, pack, unpack

Call = Callable[..., tuple[Tensor, Tensor]]
_HALVES, _NORMFLOWS = "shift_scale", "shift_scale_interleaved"


def inputs(case: Case, provider: str, device: str) -> Inputs:
    """x, raw scale and shift, log_det, gain. Scale and shift are views of one tensor that a conditioner made: its
    halves, for normflows odd and even channels. Training starts from that tensor; each provider splits it in its way.
    """
    rows, channels, *space = case.shape
    normal = Normal(case, device)
    x = normal(rows, 2 * channels, *space)
    shift, scale = normal(rows, channels, *space), normal(rows, channels, *space)
    log_det, grad_log_det = normal.reduced(rows), normal.reduced(rows)
    if case.variant == "additive":
        scale = None
    else:
        packing = _NORMFLOWS if provider == "normflows" else _HALVES
        parameters = pack(scale, shift, PACKINGS.index(packing))
        scale, shift = unpack(parameters, PACKINGS.index(packing))
    gain = torch.linspace(0.5, 2, channels, device=device, dtype=log_det.dtype) if case.variant == "tanh" else None
    grads = (normal(*x.shape), grad_log_det)
    if scale is None:
        return Inputs((x, None, shift, log_det, None), leaves=(x, shift), grads=grads[:1])
    if _trains(case):
        return Inputs((x, parameters, log_det, gain), leaves=(x, parameters, gain), grads=grads)
    return Inputs((x, scale, shift, log_det, gain))


def _trains(case: Case) -> bool:
    return case.trains and case.variant != "additive"


def _splitting(split: Callable[[Tensor], tuple[Tensor, Tensor]], case: Case, call: Call) -> Call:
    """`call` on parameters that hold shift and scale; on these two themselves where nothing is trained."""

    def training(x, parameters, log_det, gain):
        shift, scale = split(parameters)
        return call(x, scale, shift, log_det, gain)

    return training if _trains(case) else call


def fastflow(case: Case, given: Inputs) -> Call:
    active, inverse = slice(case.shape[1], None), case.direction == "inverse"
    scale_map = ScaleMap(case.variant, gain=given.arguments[-1], **SCALE_MAPS[case.variant])

    def call(x, scale, shift, log_det, gain):
        return affine_coupling(x, scale, shift, scale_map=scale_map, active=active, log_det=log_det, inverse=inverse)

    def training(x, parameters, log_det, gain):
        return affine_coupling_packed(x, parameters, packing=_HALVES, scale_map=scale_map, active=active,
                                      log_det=log_det)

    return training if _trains(case) else call


def _with_log(c: Tensor) -> tuple[Tensor, Tensor]:
    return c, c.log()


def _with_exp(log_c: Tensor) -> tuple[Tensor, Tensor]:
    return log_c.exp(), log_c


# (c, log c) of the raw scale s, as one would type it
_SCALES = {
    "exp": lambda s, gain: (s.exp(), s),
    "sigmoid": lambda s, gain: _with_log(torch.sigmoid(s + 2) + 1e-3),
    "softplus": lambda s, gain: _with_log(F.softplus(s) + 1e-3),
    "tanh": lambda s, gain: _with_exp(gain.view(-1, *[1] * (s.dim() - 2)) * torch.tanh(s)),
    "clamp_atan": lambda s, gain: _with_exp(2 * 0.636 * torch.atan(s)),
    "clamp_tanh": lambda s, gain: _with_exp(2 * torch.tanh(s)),
    "clamp_sigmoid": lambda s, gain: _with_exp(2 * (2 * torch.sigmoid(s) - 1)),
    "soft_clip": lambda s, gain: _with_exp(s / (1 + s.abs() / 2)),
    "inverse_sigmoid": lambda s, gain: (1 / torch.sigmoid(s + 2), -F.logsigmoid(s + 2)),
}


def eager(case: Case, given: Inputs) -> Call:
    scale_of, inverse = _SCALES.get(case.variant), case.direction == "inverse"

    def additive(x, scale, shift, log_det, gain):
        passive, active = x.chunk(2, 1)
        return torch.cat([passive, active - shift if inverse else active + shift], 1), log_det.clone()

    def forwards(x, scale, shift, log_det, gain):
        passive, active = x.chunk(2, 1)
        c, log_c = scale_of(scale, gain)
        return torch.cat([passive, active * c + shift], 1), log_det + log_c.flatten(1).sum(1)

    def backwards(z, scale, shift, log_det, gain):
        passive, active = z.chunk(2, 1)
        c, log_c = scale_of(scale, gain)
        return torch.cat([passive, (active - shift) / c], 1), log_det - log_c.flatten(1).sum(1)

    if scale_of is None:
        return additive
    return _splitting(lambda parameters: parameters.chunk(2, 1), case, backwards if inverse else forwards)


def _sum_except_batch(x: Tensor) -> Tensor:
    return torch.sum(x, dim=list(range(1, x.dim())))


def nflows(case: Case, given: Inputs) -> Call:
    """Gathers and scatters both halves by index tensors; sigmoid(s + 2) + 1e-3 or, additive, a scale of ones."""
    channels, inverse = case.shape[1], case.direction == "inverse"
    identity, transform = torch.arange(2 * channels, device=given.arguments[0].device).split(channels)

    def call(x, scale, shift, log_det, gain):
        passive, active = x[:, identity], x[:, transform]
        c = torch.ones_like(shift) if scale is None else torch.sigmoid(scale + 2) + 1e-3
        log_c = torch.log(c)
        if inverse:
            active, own = (active - shift) / c, 0.0 + -_sum_except_batch(log_c)
        else:
            active, own = active * c + shift, _sum_except_batch(log_c)
        z = torch.empty_like(x)
        z[:, identity] = passive
        z[:, transform] = active
        return z, log_det + own

    return _splitting(lambda parameters: (parameters[:, :channels], parameters[:, channels:]), case, call)


def normflows(case: Case, given: Inputs) -> Call:
    """Chunks and concatenates; sums a log-determinant for each of split, coupling and merge; sigmoid(s + 2) or exp."""
    kind, inverse = case.variant, case.direction == "inverse"

    def call(x, scale, shift, log_det, gain):
        passive, active = x.chunk(2, 1)
        if kind == "sigmoid":
            c = torch.sigmoid(scale + 2)
            active = (active - shift) / c if inverse else active * c + shift
            own = _sum_except_batch(torch.log(c))
            own = -own if inverse else own
        elif kind == "exp":
            active = (active - shift) * torch.exp(-scale) if inverse else active * torch.exp(scale) + shift
            own = -_sum_except_batch(scale) if inverse else _sum_except_batch(scale)
        else:
            active = active - shift if inverse else active + shift
            own = torch.zeros(x.shape[0], dtype=log_det.dtype, device=x.device)
        total = torch.zeros(x.shape[0], dtype=log_det.dtype, device=x.device)
        for part in (0, own, 0):
            total += part
        return torch.cat([passive, active], 1), log_det + total

    return _splitting(lambda parameters: (parameters[:, 0::2], parameters[:, 1::2]), case, call)


PROVIDERS = OpProviders(
    inputs,
    calls={"fastflow": fastflow, "eager": eager, "nflows": nflows, "normflows": normflows},
    limited={"nflows": ("sigmoid", "additive"), "normflows": ("exp", "sigmoid", "additive")},
)
