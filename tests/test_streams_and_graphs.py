"""Every op with a CUDA kernel where a GPU program may call it: on a side stream, in a CUDA graph, on poisoned memory.

A new op is one more line of CASES. Everything computed by a kernel is compared with its float64 truth first; that a
stream or a graph changes nothing is then a matter of equal bits. compute-sanitizer runs the tests named "poisoned".
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from oracles import assert_three_way, relayout
from torch import Tensor

from fastflow import _backend
from fastflow.bench import watching
from fastflow.ops import (
    ScaleMap,
    act_norm,
    affine_coupling,
    channel_mix,
    dequantize_logit,
    gaussian_class_marginal,
    gaussian_class_scores,
    logit,
    sym_log,
    uniform_noise,
)
from fastflow.ops._define import Op
from fastflow.ops.invert import invert
from fastflow.ops.residual_coupling import backward_op, forward_op

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@dataclass(frozen=True)
class Case:
    """`call(*tensors)` gives tensors; `shapes` are those of its arguments, drawn by `draw`."""

    op: str
    form: str
    call: Callable[..., tuple[Tensor, ...]]
    shapes: tuple[tuple[int, ...], ...]
    draw: Callable[..., Tensor] = torch.randn
    differentiable: bool = True

    @property
    def backend(self) -> str:
        return watching.ops()[self.op].on_cuda

    def __str__(self) -> str:
        return f"{self.backend}-{self.op}-{self.form}"


def _coupling(**settings) -> Callable:
    scale_map = ScaleMap("sigmoid", bias=2.0, eps=1e-3)
    return lambda x, scale, shift, log_det: affine_coupling(x, scale, shift, scale_map=scale_map, log_det=log_det,
                                                            **settings)


def _gained(x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    return affine_coupling(x, scale, shift, scale_map=ScaleMap("tanh", gain=gain), active=slice(1, None, 2))


def _marginal(z: Tensor, *parameters: Tensor) -> tuple[Tensor]:
    labels = torch.arange(len(z), device=z.device) % 3 - 1
    return (gaussian_class_marginal(z, *parameters, labels),)


def _noise(x: Tensor) -> tuple[Tensor]:
    return (uniform_noise(x.shape, seed=3, step=1, rows=torch.arange(len(x), device=x.device)),)


def _grey_levels(x: Tensor) -> tuple[Tensor, Tensor]:
    levels, rows = (x.float() * 255).to(torch.uint8), torch.arange(len(x), device=x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return dequantize_logit(levels, levels=256, alpha=0.05, seed=3, step=1, rows=rows, dtype=dtype)


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _conditioned(op: Op, operands: list[Tensor], weights: tuple[Tensor, ...], *rest: object) -> tuple[Tensor, ...]:
    """`operands` are float32 whatever the weights are."""
    results = op.kernel(_backend.forced(), "cuda")(
        *map(_wide, operands), [weight / 4 for weight in weights], None, True, *rest)
    return tuple(tensor for each in results for tensor in (each if isinstance(each, list) else [each]))


_SIGMOID = (2, 2.0, 1e-3, 1.0, True)  # the settings of the scale map, as ops take them


def _residual(passive: Tensor, active: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return _conditioned(forward_op, [passive, active, None, table], weights, True, *_SIGMOID)


def _residual_backward(passive: Tensor, z: Tensor, table: Tensor, grad_z: Tensor, grad_log_det: Tensor,
                       *weights: Tensor) -> tuple[Tensor, ...]:
    return _conditioned(backward_op, [passive, z, table], weights, *_SIGMOID, _wide(grad_z), grad_log_det)


# Ragged in rows and features, an image, and so few rows that programs share them.
_TABLE, _IMAGE, _LONG = (37, 70), (5, 6, 7, 9), (2, 3000)
_HALVES = ((37, 140), _TABLE, _TABLE, (37,))
_CONDITIONER = ((24, 13), (24, 24), (24,), (24, 24), (24,), (24,), (24,), (22, 24), (22,))
CASES = [
    Case("affine_coupling", "forward", _coupling(active=slice(70, None)), _HALVES),
    Case("affine_coupling", "inverse", _coupling(active=slice(70, None), inverse=True), _HALVES),
    Case("affine_coupling", "few rows", _coupling(), (_LONG, _LONG, _LONG, (2,))),
    Case("affine_coupling", "gain", _gained, ((5, 12, 7, 9), _IMAGE, _IMAGE, (6,))),
    Case("logit", "forward", lambda x, log_det: logit(x, log_det=log_det), (_TABLE, (37,)), torch.rand),
    Case("logit", "inverse", lambda x, log_det: logit(x, log_det=log_det, inverse=True), (_IMAGE, (5,))),
    Case("logit", "few rows", lambda x, log_det: logit(x, log_det=log_det), (_LONG, (2,)), torch.rand),
    Case("sym_log", "forward", lambda x, log_det: sym_log(x, log_det=log_det), (_IMAGE, (5,))),
    Case("act_norm", "forward", act_norm, (_IMAGE, (6,), (6,))),
    Case("channel_mix", "forward", lambda x, weight, log_det: channel_mix(x, weight, log_det=log_det),
         (_IMAGE, (6, 6), (5,))),
    Case("channel_mix", "few rows", lambda x, weight: channel_mix(x, weight), ((37, 48), (48, 48))),
    Case("invert", "forward", lambda matrix: invert(matrix.double()), ((6, 6),)),
    Case("uniform_noise", "forward", _noise, (_TABLE,), differentiable=False),
    Case("dequantize_logit", "forward", _grey_levels, (_TABLE,), torch.rand, differentiable=False),
    Case("gaussian_class_scores", "forward", lambda *given: (gaussian_class_scores(*given),),
         ((37, 70), (11, 70), (11, 70), (11,))),
    Case("gaussian_class_scores", "marginal", _marginal, ((37, 70), (40, 70), (1, 70), (40,))),
    Case("residual_coupling", "forward", _residual, ((37, 13), (37, 11), (3, 24), *_CONDITIONER), differentiable=False),
    Case("residual_coupling", "backward", _residual_backward,
         ((37, 13), (111, 11), (3, 24), (111, 11), (111,), *_CONDITIONER), differentiable=False),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def available(request):
    backend = request.node.callspec.params["case"].backend
    state = _backend.state(backend)
    if state.status == "unavailable":
        pytest.skip(state.reason)


def drawn(case: Case, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Fresh arguments, the same for the same seed; those of one dim are log_dets and parameters, float32."""
    generator = torch.Generator("cuda").manual_seed(seed)
    tensors = [case.draw(shape, generator=generator, device="cuda") for shape in case.shapes]
    return [tensor if tensor.dim() == 1 else tensor.to(dtype) for tensor in tensors]


def everything(case: Case, given: list[Tensor], backend: str | None = None) -> list[Tensor]:
    """The outputs of the kernels of the case, and the gradients of all arguments where it has any."""
    with _backend.backend(backend or case.backend):
        if not case.differentiable:
            return list(case.call(*given))
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        outputs = case.call(*leaves)
        return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])]


def same(computed: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(computed, expected, strict=True))


@every_case
def test_poisoned_memory_leaves_no_trace(case):
    """Fresh memory holds NaN (tests/conftest.py), and so does what lies beside the arguments."""
    given = drawn(case, 0)
    truth = everything(case, [tensor.double() for tensor in given], "reference")
    plain = everything(case, given, "reference")
    placed = [relayout(tensor, "offset") for tensor in given]
    for one, eager, exact in zip(everything(case, placed), plain, truth, strict=True):
        # the terms of a log_det add up to more than 1, whatever is left of them
        assert_three_way(one, eager, exact, name=str(case), terms=exact.abs() + 1)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_side_stream(case, dtype):
    """The kernels wait for what their stream writes before them, and for no other stream."""
    given = drawn(case, 1, dtype)
    expected = everything(case, given)
    stream = torch.cuda.Stream()
    for cycles in (1, 100_000_000):  # the first time, kernels are loaded, which waits for the device
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            late = [torch.zeros_like(tensor) for tensor in given]
            torch.cuda._sleep(cycles)
            for target, source in zip(late, given, strict=True):
                target.copy_(source)
            computed = everything(case, late)
        waited = stream.query()
        stream.synchronize()
        assert same(computed, expected)
    assert not waited


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_and_replayed_on_new_inputs(case, dtype):
    given = drawn(case, 2, dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(case, given)  # compiles
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        computed = everything(case, given)
    for seed in (3, 4):
        fresh = drawn(case, seed, dtype)
        expected = everything(case, fresh)
        for target, source in zip(given, fresh, strict=True):
            target.copy_(source)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        assert same(computed, expected)
