"""The ops whose only rival is the shortest idiomatic PyTorch for each."""

from collections.abc import Callable
from math import log, prod

import torch
from torch import Tensor

from fastflow import ops
from fastflow.bench.cases import Case
from fastflow.bench.inputs import Inputs, Normal, OpProviders


def _inverse(case: Case) -> bool:
    return case.direction == "inverse"


def _pixels(x: Tensor) -> int:
    return prod(x.shape[2:])


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.dim() - 2))


def _act_norm_inputs(case: Case, provider: str, device: str) -> Inputs:
    normal = Normal(case, device)
    x, shift, log_scale = normal(*case.shape), normal(case.shape[1]), normal(case.shape[1])
    log_det, grads = normal.reduced(case.shape[0]), (normal(*case.shape), normal.reduced(case.shape[0]))
    return Inputs((x, shift, log_scale, log_det), leaves=(x, shift, log_scale), grads=grads)


def _act_norm(case: Case, given: Inputs) -> Callable:
    inverse = _inverse(case)
    return lambda x, shift, log_scale, log_det: ops.act_norm(x, shift, log_scale, log_det=log_det, inverse=inverse)


def _act_norm_eager(case: Case, given: Inputs) -> Callable:
    def forward(x, shift, log_scale, log_det):
        z = (x - _per_channel(shift, x)) * _per_channel(log_scale.exp(), x)
        return z, log_det + _pixels(x) * log_scale.sum()

    def inverse(z, shift, log_scale, log_det):
        x = z * _per_channel((-log_scale).exp(), z) + _per_channel(shift, z)
        return x, log_det - _pixels(z) * log_scale.sum()

    return inverse if _inverse(case) else forward


def _channel_mix_inputs(case: Case, provider: str, device: str) -> Inputs:
    normal, channels = Normal(case, device), case.shape[1]
    x = normal(*case.shape)
    # Orthogonal, as it is initialised: any other matrix would make the inverse a matter of luck.
    weight = torch.linalg.qr(normal(channels, channels).double()).Q.to(x.dtype)
    log_det, grads = normal.reduced(case.shape[0]), (normal(*case.shape), normal.reduced(case.shape[0]))
    return Inputs((x, weight, log_det), leaves=(x, weight), grads=grads)


def _channel_mix(case: Case, given: Inputs) -> Callable:
    return lambda x, weight, log_det: ops.channel_mix(x, weight, log_det=log_det, inverse=_inverse(case))


def _channel_mix_eager(case: Case, given: Inputs) -> Callable:
    def call(x, weight, log_det):
        own = _pixels(x) * torch.linalg.slogdet(weight).logabsdet
        if _inverse(case):
            weight, own = torch.linalg.inv(weight), -own
        return torch.nn.functional.conv2d(x, weight[:, :, None, None]), log_det + own

    return call


def _logit_inputs(case: Case, provider: str, device: str) -> Inputs:
    normal = Normal(case, device)
    x = normal(*case.shape)
    x = x if _inverse(case) else x.sigmoid()
    log_det, grads = normal.reduced(case.shape[0]), (normal(*case.shape), normal.reduced(case.shape[0]))
    return Inputs((x, log_det), leaves=(x,), grads=grads)


def _logit(case: Case, given: Inputs) -> Callable:
    return lambda x, log_det: ops.logit(x, alpha=0.05, log_det=log_det, inverse=_inverse(case))


def _logit_eager(case: Case, given: Inputs) -> Callable:
    def forward(x, log_det):
        p = 0.95 * x + 0.025
        return torch.logit(p), log_det + (log(0.95) - p.log() - (1 - p).log()).flatten(1).sum(1)

    def inverse(z, log_det):
        p = torch.sigmoid(z)
        return (p - 0.025) / 0.95, log_det - (log(0.95) - p.log() - (1 - p).log()).flatten(1).sum(1)

    return inverse if _inverse(case) else forward


def _rows(case: Case, device: str) -> Tensor:
    return torch.arange(case.shape[0], device=device)


def _noise_inputs(case: Case, provider: str, device: str) -> Inputs:
    return Inputs((_rows(case, device),))


def _noise(case: Case, given: Inputs) -> Callable:
    return lambda rows: (ops.uniform_noise(case.shape, seed=0, step=1, rows=rows, dtype=case.torch_dtype),)


def _noise_eager(case: Case, given: Inputs) -> Callable:
    return lambda rows: (torch.rand(case.shape, device=rows.device, dtype=case.torch_dtype),)


def _dequantize_logit_inputs(case: Case, provider: str, device: str) -> Inputs:
    x = torch.randint(256, case.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Inputs((x.to(device), _rows(case, device)))


def _dequantize_logit(case: Case, given: Inputs) -> Callable:
    def call(x, rows):
        key = {"seed": 0, "step": 1, "rows": rows} if case.variant == "noise" else {}
        return ops.dequantize_logit(x, levels=256, alpha=0.05, dtype=case.torch_dtype, **key)

    return call


def _dequantize_logit_eager(case: Case, given: Inputs) -> Callable:
    def call(x, rows):
        noise = torch.rand(x.shape, device=x.device, dtype=case.torch_dtype) if case.variant == "noise" else 0.5
        p = 0.95 * ((x + noise) / 256) + 0.025
        return torch.logit(p), (log(0.95) - p.log() - (1 - p).log()).flatten(1).sum(1)

    return call


def _sym_log_inputs(case: Case, provider: str, device: str) -> Inputs:
    normal = Normal(case, device)
    x, log_det = normal(*case.shape), normal.reduced(case.shape[0])
    return Inputs((x, log_det), leaves=(x,), grads=(normal(*case.shape), normal.reduced(case.shape[0])))


def _sym_log(case: Case, given: Inputs) -> Callable:
    return lambda x, log_det: ops.sym_log(x, log_det=log_det, inverse=_inverse(case))


def _sym_log_eager(case: Case, given: Inputs) -> Callable:
    def forward(x, log_det):
        size = x.abs().log1p()
        return x.sign() * size, log_det - size.flatten(1).sum(1)

    def inverse(z, log_det):
        size = z.abs()
        return z.sign() * size.expm1(), log_det + size.flatten(1).sum(1)

    return inverse if _inverse(case) else forward


PROVIDERS = {
    "act_norm": OpProviders(_act_norm_inputs, {"fastflow": _act_norm, "eager": _act_norm_eager}),
    "channel_mix": OpProviders(_channel_mix_inputs, {"fastflow": _channel_mix, "eager": _channel_mix_eager}),
    "dequantize_logit": OpProviders(
        _dequantize_logit_inputs, {"fastflow": _dequantize_logit, "eager": _dequantize_logit_eager}),
    "logit": OpProviders(_logit_inputs, {"fastflow": _logit, "eager": _logit_eager}),
    "sym_log": OpProviders(_sym_log_inputs, {"fastflow": _sym_log, "eager": _sym_log_eager}),
    "uniform_noise": OpProviders(_noise_inputs, {"fastflow": _noise, "eager": _noise_eager}),
}
