"""What a fused layer must do besides agreeing with the original: transforms of functions, compilation, autocast."""

import copy
from collections.abc import Callable

import torch
from agreement import leaves, outputs_and_gradients
from torch import Tensor, nn

from fastflow.fusion import fuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.swap import survey


class ChannelNet(nn.Module):
    """A conditioner of [B, channels, ...] with any number of further dims: a matrix, tanh, a matrix, and a shift."""

    def __init__(self, channels: int, made: int, hidden: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(channels, hidden), nn.Linear(hidden, made)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.movedim(1, -1)))).movedim(-1, 1)


class Given(nn.Module):
    """A conditioner whose output is known."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made


def forward(module: nn.Module, *inputs: Tensor) -> object:
    return module.forward(*inputs)


def inverse(module: nn.Module, *inputs: Tensor) -> object:
    return module.inverse(*inputs)


def log_prob(module: nn.Module, *inputs: Tensor) -> Tensor:
    return module.log_prob(*inputs)


BOTH = (forward, inverse)


def assert_transforms(original: nn.Module, call: Callable, x: Tensor) -> None:
    """jvp, and vmap of batches of one row, give what the original gives; where that cannot be mapped, what its rows
    give."""
    fused = fuse(copy.deepcopy(original))
    tangent = torch.randn_like(x)

    def tensors(module: nn.Module, x: Tensor) -> tuple:
        return tuple(each for each in leaves(call(module, x)) if isinstance(each, Tensor))

    torch.testing.assert_close(*(torch.func.jvp(lambda x, m=m: tensors(m, x), (x,), (tangent,))
                                 for m in (fused, original)))
    mapped = torch.func.vmap(lambda row: tensors(fused, row[None]))(x)
    rows = [tensors(original, row[None]) for row in x]
    for index, mine in enumerate(mapped):
        torch.testing.assert_close(mine, torch.stack([row[index] for row in rows]))


def assert_compiles(original: nn.Module, call: Callable, *inputs: Tensor, fewer_rows: int = 0) -> None:
    """The fused layer compiles as one graph, forward and backward; with `fewer_rows` also as one for other batches."""
    fused = fuse(copy.deepcopy(original))
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: call(fused, *given), fullgraph=True, backend="aot_eager")
    for rows in {inputs[0].shape[0], inputs[0].shape[0] - fewer_rows}:
        given = tuple(each[:rows] for each in inputs)
        torch.testing.assert_close(outputs_and_gradients(fused, lambda _, *given: compiled(*given), given),
                                   outputs_and_gradients(fused, call, given), rtol=1e-4, atol=1e-5)


def assert_float32_under_autocast(original: nn.Module, call: Callable, *inputs: Tensor) -> None:
    """A layer without a conditioner computes under autocast what it computes without."""
    fused = fuse(copy.deepcopy(original))
    with torch.autocast("cpu", torch.bfloat16):
        inside = leaves(call(fused, *inputs))
    for mine, theirs in zip(inside, leaves(call(fused, *inputs)), strict=True):
        assert torch.equal(mine, theirs) if isinstance(theirs, Tensor) else mine == theirs


def assert_float32_from_conditioners(original: nn.Module, call: Callable, x: Tensor, *names: str) -> None:
    """Under autocast only the conditioners, which `names` finds in `original`, compute in bfloat16; what is computed of
    their rounded outputs is float32, and as exact as what the original computes of these in float32."""
    fused, made = fuse(copy.deepcopy(original)), {}
    for name in names:
        original.get_submodule(name).register_forward_hook(lambda *call, name=name: made.update({name: call[-1]}))
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = call(fused, x)
        call(original, x)
    for name in names:
        assert made[name].dtype == torch.bfloat16
        original.set_submodule(name, Given(made[name].float()))
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close((z, log_det), call(original, x))


def assert_same_draws(fused: nn.Module, original: nn.Module, call: Callable, **tolerances: float) -> None:
    """call(module), which draws random numbers, gives the same from the same seed."""
    results = []
    for module in (fused, original):
        torch.manual_seed(1)
        results.append(call(module))
    torch.testing.assert_close(*results, **tolerances)


def assert_left(module: nn.Module, reason: str) -> None:
    """`fuse` leaves the module, for that reason."""
    assert survey(module)[0].reason == reason
    assert not is_fused(fuse(module))
