"""A fused layer against the original: outputs and gradients by the three-way rule, and what stays as it was."""

import copy
import pickle
from collections.abc import Callable

import torch
from oracles import UNIT_ROUNDOFF, assert_three_way
from torch import Tensor, nn

import fastflow.fusion
from fastflow.fusion.layer import is_fused

Call = Callable[..., object]  # call(module, *inputs) -> tensors, numbers, or nested lists and tuples of them


def perturbed(module: nn.Module, size: float = 0.5) -> nn.Module:
    """The module with noise in its trainable parameters, so that scales and shifts differ from 1 and 0.

    Matrices called `weights` stay: FrEIA's OrthogonalTransform inverts its own by transposing it.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point() and not name.endswith("weights"):
                inputs = parameter[0].numel() if parameter.dim() > 1 else max(1, parameter.numel()) ** 0.5
                parameter.add_(size * inputs**-0.5 * torch.randn_like(parameter))
    return module


def leaves(value: object) -> list:
    """The tensors and numbers of nested lists and tuples, in order."""
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def outputs_and_gradients(module: nn.Module, call: Call, inputs: tuple[Tensor, ...]) -> tuple[list, list]:
    """What `call` gives, and the gradients of a weighted sum of it for every input and parameter."""
    given = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_(each.is_floating_point())
             for each in inputs]
    outputs = leaves(call(module, *given))
    wanted = [each for each in (*given, *module.parameters()) if each.requires_grad]
    total = sum((each.double() * _weights(each)).sum() for each in outputs
                if isinstance(each, Tensor) and each.requires_grad)
    if not isinstance(total, Tensor):
        return outputs, []
    return outputs, list(torch.autograd.grad(total, wanted, allow_unused=True))


def _weights(of: Tensor) -> Tensor:
    return torch.linspace(-1, 1, of.numel(), dtype=torch.float64).add(0.3).view(of.shape)


def assert_agrees(original: nn.Module, call: Call, *inputs: Tensor, in_the_mean: bool = False) -> nn.Module:
    """Fuses copies of `original` in float32 and float64 and compares them with the original, by the three-way rule.

    In float64, where the original is the truth, its own error is taken to be its error in float32 times the ratio of
    the roundoffs. Types, shapes and dtypes of the outputs are compared too. The inputs are of any float dtype; integers
    stay as they are. `in_the_mean` is for deep models, of which one row in a thousand multiplies any rounding by far
    more than the others: errors are then means of their absolute values. Returns the fused float32 copy.
    """
    rounded = tuple(each.float() if each.is_floating_point() else each for each in inputs)
    exact = tuple(each.double() if each.is_floating_point() else each for each in rounded)
    eager, truth = copy.deepcopy(original).float(), copy.deepcopy(original).float().double()
    single, double = (fastflow.fusion.fuse(copy.deepcopy(each)) for each in (eager, truth))
    assert any(is_fused(each) for each in single.modules()), "nothing was fused"
    results = [outputs_and_gradients(module, call, given)
               for module, given in ((single, rounded), (eager, rounded), (double, exact), (truth, exact))]
    for name, mine, eagers, mine_double, truths in zip(("output", "gradient"), *results, strict=True):
        compare(mine, eagers, truths, f"float32 {name}", in_the_mean)
        compare(mine_double, [_with_error_of(*pair) for pair in zip(eagers, truths, strict=True)], truths,
                f"float64 {name}", in_the_mean)
    return single


def _with_error_of(eager: object, truth: object) -> object:
    """The truth in float64 off by what two computations of eager's algorithm may differ by, to be doubled."""
    if not isinstance(truth, Tensor) or truth.dtype != torch.float64:
        return truth
    error = (eager.double() - truth).abs()
    return truth + 1.5 * 2.0**-29 * error[error.isfinite()].amax() if error.isfinite().any() else truth


def compare(fused: list, eager: list, truth: list, name: str, in_the_mean: bool = False) -> None:
    """Compares lists of tensors, numbers and None one by one, in type, shape, dtype and value.

    Eager's error is its largest over the whole list, each relative to the largest value of its tensor: of a tensor of
    few elements by itself it is small by chance now and then.
    """
    assert len(fused) == len(eager)
    size = _mean_size if in_the_mean else _size
    worst = max((_relative_error(*pair, size) for pair in zip(eager, truth, strict=True)), default=0.0)
    for index, (ours, theirs, exact) in enumerate(zip(fused, eager, truth, strict=True)):
        kinds = type(ours).__name__, type(theirs).__name__
        assert kinds[0] == kinds[1], f"{name} {index} is a {kinds[0]}, expected {kinds[1]}"
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype, f"{name} {index} has dtype {ours.dtype}, expected {theirs.dtype}"
            if in_the_mean:
                assert torch.equal(ours.isfinite(), exact.isfinite()), f"{name} {index}: other values are not finite"
                bound = (2 * worst + 4 * UNIT_ROUNDOFF[ours.dtype]) * size(exact)
                assert size(ours.double() - exact.double()) <= bound, f"{name} {index}: error exceeds {bound:.3e}"
            else:
                allowed = torch.where(theirs.isfinite(), exact + worst * size(exact), theirs)
                assert_three_way(ours, allowed, exact, name=f"{name} {index}")
        else:
            assert ours == theirs, f"{name} {index} is {ours!r}, expected {theirs!r}"


def _size(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return finite.abs().amax().item() if finite.numel() else 0.0


def _mean_size(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return finite.abs().mean().item() if finite.numel() else 0.0


def _relative_error(eager: object, exact: object, size: Callable[[Tensor], float]) -> float:
    if not isinstance(eager, Tensor) or not eager.is_floating_point() or size(exact) == 0:
        return 0.0
    return size(eager.double() - exact.double()) / size(exact)


def assert_keeps(original: nn.Module, call: Call, *inputs: Tensor) -> None:
    """Keys of the state_dict, repr, classes, deepcopy, pickle, unfuse and fusing twice are as promised."""
    fused = copy.deepcopy(original)
    assert fastflow.fusion.fuse(fused) is fused
    fastflow.fusion.fuse(fused)
    assert list(fused.state_dict()) == list(original.state_dict())
    assert repr(fused) == repr(original)
    for (name, mine), (_, other) in zip(fused.named_modules(), original.named_modules(), strict=True):
        assert isinstance(mine, type(other)), name
        assert type(mine).__name__ == type(other).__name__, name
    expected = leaves(call(fused, *inputs))
    copies = [copy.deepcopy(fused)]
    if _pickles(original):
        copies.append(pickle.loads(pickle.dumps(fused)))
    other = copy.deepcopy(original)
    other.load_state_dict(fused.state_dict())
    fused.load_state_dict(other.state_dict())
    for each in (*copies, fused):
        assert all(map(_same, leaves(call(each, *inputs)), expected))
    assert fastflow.fusion.unfuse(fused) is fused
    assert [type(each) for each in fused.modules()] == [type(each) for each in original.modules()]
    assert [vars(each).keys() for each in fused.modules()] == [vars(each).keys() for each in original.modules()]
    assert [name for name, _ in fused.named_buffers()] == [name for name, _ in original.named_buffers()]
    assert all(map(_same, leaves(call(fused, *inputs)), leaves(call(original, *inputs))))


def _pickles(module: nn.Module) -> bool:
    try:
        pickle.dumps(module)
    except (AttributeError, TypeError, pickle.PicklingError):
        return False
    return True


def _same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other
