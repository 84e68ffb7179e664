"""What the peer libraries promise of a model, one function each: it raises where the promise is broken.

A promise is tested on the original and on the fused model. What the original keeps the fused one must keep; what
`REPAIRED` names a library breaks and the fused model keeps.
"""

import copy
import io
import warnings
from collections.abc import Callable

import torch
from agreement import leaves, perturbed
from models import Model
from oracles import jacobian_log_det, relayout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS = 8
REPAIRED = {
    "empty_batch": ("nflows Glow", "FrEIA AllInOne", "FrEIA conditional AllInOne", "FrEIA images", "zuko RealNVP",
                    "zuko conditional RealNVP", "zuko NICE", "zuko MAF", "zuko conditional MAF"),
    "double_sampling": ("nflows RealNVP", "nflows conditional RealNVP", "nflows MAF", "nflows Glow"),
    "autocast_log_det": ("FrEIA GLOW", "FrEIA AllInOne", "zuko RealNVP"),
    "decodes_what_it_encoded": ("nflows linear",),
    "is_exported_for_any_batch": tuple(f"normflows {each}" for each in (
        "RealNVP", "RealNVP sigmoid", "NICE", "masked", "MAF", "linear", "mixture base", "checkerboard", "Glow")),
}
COMPILED = {  # those whose compiled graph is whole only when they are fused
    "compiles_density": ("nflows conditional RealNVP", "nflows Glow", "normflows RealNVP", "zuko RealNVP",
                         "zuko conditional RealNVP", "zuko NICE"),
    "compiles_inverse": ("nflows MAF", "nflows Glow", "normflows RealNVP", "zuko RealNVP"),
}


def started(model: Model, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose data-dependent layers have seen a batch, perturbed."""
    torch.manual_seed(seed)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = model.make().to(dtype).train()
        model.log_prob(module, *(each.to(dtype) for each in model.data(16)))
    return perturbed(module).to(dtype)


def data(model: Model, module: nn.Module, rows: int = ROWS) -> tuple[Tensor, ...]:
    dtype = next(each.dtype for each in module.parameters() if each.is_floating_point())
    return tuple(each.to(dtype) for each in model.data(rows))


def close(one: Tensor, other: Tensor, digits: int = 4) -> None:
    torch.testing.assert_close(one, other, rtol=10.0**-digits, atol=10.0**-digits)


def trains(model: Model, module: nn.Module) -> None:
    """log_prob is finite and gives every trainable parameter of the conditioners a gradient."""
    (-model.log_prob(module.train(), *data(model, module)).mean()).backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in module.parameters())
    assert any(each.grad is not None for each in module.parameters())


def decodes_what_it_encoded(model: Model, module: nn.Module) -> None:
    x, *context = data(model, module.eval())
    z, log_det = model.encode(module, x, *context)
    back, log_det_back = model.decode(module, z, *context)
    close(back, x, 3)
    close(torch.as_tensor(log_det_back) + torch.as_tensor(log_det), torch.zeros(x.shape[0]), 3)


def log_det_is_the_jacobian(model: Model, module: nn.Module) -> None:
    if model.context or len(model.shape) > 1:
        return
    module = module.double().eval()
    (x,) = data(model, module, 3)
    log_det = torch.as_tensor(model.encode(module, x)[1], dtype=x.dtype).expand(3)
    close(log_det, jacobian_log_det(lambda each: model.encode(module, each)[0], x))


def reads_any_strides(model: Model, module: nn.Module) -> None:
    given = data(model, module.eval())
    expected = model.log_prob(module, *given)
    for layout in ("strided", "transposed", "channels_last"):
        close(model.log_prob(module, *(relayout(each, layout) for each in given)), expected)


def empty_batch(model: Model, module: nn.Module) -> None:
    given = data(model, module.eval(), 0)
    assert model.log_prob(module, *given).shape == (0,)
    z, _ = model.encode(module, *given)
    assert leaves(model.decode(module, z, *given[1:]))[0].shape == given[0].shape


def single_row(model: Model, module: nn.Module) -> None:
    given = data(model, module.eval())
    close(model.log_prob(module, *(each[:1] for each in given)), model.log_prob(module, *given)[:1])


def samples(model: Model, module: nn.Module) -> None:
    if model.sample is None:
        return
    _, *context = data(model, module.eval(), 1)
    with torch.no_grad():
        drawn = leaves(model.sample(module, 5, *context))[0]
    assert drawn.shape[-len(model.shape):] == model.shape
    assert drawn.isfinite().all()


def double_sampling(model: Model, module: nn.Module) -> None:
    samples(model, module.double())


def double_training(model: Model, module: nn.Module) -> None:
    trains(model, module.double())


def autocast_log_det(model: Model, module: nn.Module) -> None:
    """Under bfloat16 autocast log_prob stays float32 and near what float32 gives."""
    given = data(model, module.eval())
    expected = model.encode(module, *given)[1]
    with torch.autocast("cpu", torch.bfloat16):
        log_det = model.encode(module, *given)[1]
    if isinstance(expected, Tensor):
        assert log_det.dtype == torch.float32
        close(log_det, expected, 1)


def vectorises(model: Model, module: nn.Module) -> None:
    """vmap over rows, each a batch of one, gives what the batch gives."""
    given = data(model, module.eval())
    rows = torch.func.vmap(lambda *row: model.log_prob(module, *(each[None] for each in row))[0])(*given)
    close(rows, model.log_prob(module, *given))


def differentiates_forward(model: Model, module: nn.Module) -> None:
    """jvp is the product with the gradient."""
    x, *context = data(model, module.double().eval())
    direction = torch.randn_like(x)
    _, slope = torch.func.jvp(lambda each: model.log_prob(module, each, *context).sum(), (x,), (direction,))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(module, x, *context).sum(), x)
    close(slope, (gradient * direction).sum(), 6)


def differentiates_twice(model: Model, module: nn.Module) -> None:
    if len(model.shape) > 1:
        return
    x, *context = data(model, module.double().eval(), 2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(module, x, *context).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def checkpoints(model: Model, module: nn.Module) -> None:
    x, *context = data(model, module.eval())
    gradients = []
    for run in (lambda each: model.log_prob(module, each, *context),
                lambda each: checkpoint(lambda x: model.log_prob(module, x, *context), each, use_reentrant=False)):
        given = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(run(given).sum(), given)[0])
    close(*gradients)


def restores_its_state(model: Model, module: nn.Module) -> None:
    """A new model that loads the state gives the same numbers, also where the first batch would initialise it."""
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(0)
    other.load_state_dict(torch.load(stored))
    given = data(model, module)
    assert torch.equal(model.log_prob(other, *given), model.log_prob(module, *given))


def copies_after_backward(model: Model, module: nn.Module) -> None:
    given = data(model, module)
    model.log_prob(module, *given).sum().backward()
    assert torch.equal(model.log_prob(copy.deepcopy(module).eval(), *given), model.log_prob(module.eval(), *given))


def calls_hooks(model: Model, module: nn.Module) -> None:
    """Hooks of the conditioners' linear maps and of the layers themselves are called as often as before."""
    calls: list[str] = []
    for name, each in module.named_modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            each.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.log_prob(module.eval(), *data(model, module))
    assert calls or not any(isinstance(each, nn.Linear | nn.Conv2d) for each in module.modules())


class Density(nn.Module):
    def __init__(self, model: Model, module: nn.Module) -> None:
        super().__init__()
        self.model, self.flow = model, module

    def forward(self, *given: Tensor) -> Tensor:
        return self.model.log_prob(self.flow, *given)


def is_traced(model: Model, module: nn.Module) -> None:
    given = data(model, module.eval())
    traced = torch.jit.trace(Density(model, module), given, check_trace=False)
    close(traced(*given), model.log_prob(module, *given))


def is_exported_for_any_batch(model: Model, module: nn.Module) -> None:
    given, others = data(model, module.eval()), data(model, module, ROWS + 3)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Density(model, module), given, dynamic_shapes=((batch,) * len(given),), strict=False)
    close(program.module()(*others), model.log_prob(module, *others), 3)


def compiles_density(model: Model, module: nn.Module) -> None:
    """One graph for log_prob in training, forward and backward."""
    given = data(model, module.train())
    compiled = torch.compile(lambda *given: model.log_prob(module, *given), fullgraph=True, backend="aot_eager")
    parameters = [each for each in module.parameters() if each.requires_grad]
    results = []
    for log_prob in (compiled, lambda *given: model.log_prob(module, *given)):
        value = log_prob(*given)
        results.append([value, *torch.autograd.grad(value.sum(), parameters, allow_unused=True)])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other, 3)


def compiles_inverse(model: Model, module: nn.Module) -> None:
    given = data(model, module.eval())
    with torch.no_grad():
        z = model.encode(module, *given)[0]
        compiled = torch.compile(lambda z, *context: model.decode(module, z, *context), fullgraph=True,
                                 backend="aot_eager")
        close(leaves(compiled(z, *given[1:]))[0], given[0], 3)


Behaviour = Callable[[Model, nn.Module], None]
BEHAVIOURS: tuple[Behaviour, ...] = (
    trains, decodes_what_it_encoded, log_det_is_the_jacobian, reads_any_strides, empty_batch, single_row, samples,
    double_sampling, double_training, autocast_log_det, vectorises, differentiates_forward, differentiates_twice,
    checkpoints, restores_its_state, copies_after_backward, calls_hooks, is_traced, is_exported_for_any_batch)
