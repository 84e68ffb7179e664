"""What every bijection must satisfy, as checks that the layers' tests call."""

import torch
from oracles import jacobian_log_det
from torch import Tensor

from fastflow.nn import Bijection

# seed-systems' acceptance bounds on f^-1(f(x)) - x
ROUND_TRIP = {torch.float64: 1e-10, torch.float32: 1e-4}


def assert_inverts(layer: Bijection, x: Tensor, context: Tensor | None = None) -> None:
    """f^-1(f(x)) = x, the log-determinants cancel, and both add to a running log_det without changing it."""
    start = torch.arange(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    kept = start.clone()
    with torch.no_grad():
        z, log_det = layer(x, context, start)
        back, returned = layer.inverse(z, context, log_det)
        fresh = layer(x, context)[1]
    assert torch.equal(start, kept)
    assert z.dtype == back.dtype == x.dtype
    assert log_det.dtype == start.dtype
    assert log_det.shape == x.shape[:1]
    assert back.shape == x.shape
    if x.numel():
        bound = ROUND_TRIP[x.dtype]
        assert (back - x).abs().max() <= bound
        size = max(1.0, float(log_det.abs().max()))
        assert (returned - start).abs().max() <= bound * size
    assert torch.allclose(log_det - start, fresh, rtol=1e-5, atol=1e-4 if x.dtype == torch.float32 else 1e-9)


def assert_log_det(layer: Bijection, x: Tensor, context: Tensor | None = None) -> None:
    """log_det of float64 rows x is log|det| of the autograd Jacobian, for the layer and its inverse."""
    assert x.dtype == torch.float64

    def rows(function, row: Tensor, i: int) -> Tensor:
        return function(row, None if context is None else context[i : i + 1])[0]

    z, log_det = layer(x, context)
    _, returned = layer.inverse(z, context)
    for i in range(len(x)):
        expected = jacobian_log_det(lambda row, i=i: rows(layer, row, i), x[i : i + 1])
        assert torch.allclose(log_det[i : i + 1], expected, rtol=1e-9, atol=1e-9)
        expected = jacobian_log_det(lambda row, i=i: rows(layer.inverse, row, i), z[i : i + 1].detach())
        assert torch.allclose(returned[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def scatter(module: torch.nn.Module, size: float = 0.1, seed: int = 1) -> torch.nn.Module:
    """Moves every parameter off its calm start, where zero outputs would hide mistakes; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter))
    return module
