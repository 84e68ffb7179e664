"""Scale and shift in one tensor: the same values as from two, and one gradient in the layout of that tensor."""

import re

import pytest
import torch
from coupling_cases import call, eager, gradients, leaves, make_inputs, values
from test_affine_coupling import backend  # noqa: F401, the fixture
from torch.autograd import gradcheck, gradgradcheck

from fastflow.nn import AffineCoupling, Split
from fastflow.ops import ScaleMap, affine_coupling, affine_coupling_packed
from fastflow.ops.packing import PACKINGS, pack, unpack

every_packing = pytest.mark.parametrize("packing", PACKINGS)


def packed(inputs: dict, packing: str, layout: torch.memory_format = torch.contiguous_format) -> dict:
    """The arguments of affine_coupling_packed for those of affine_coupling."""
    rest = {name: value for name, value in inputs.items() if name not in ("scale", "shift")}
    parameters = pack(inputs["scale"], inputs["shift"], PACKINGS.index(packing)).contiguous(memory_format=layout)
    return {**rest, "parameters": parameters, "packing": packing}


@pytest.mark.parametrize(
    ("shape", "split", "layout", "dtype"),
    [
        ((13, 600), "second", torch.contiguous_format, torch.float32),
        ((7, 10), "odd", torch.contiguous_format, torch.float64),
        ((5, 6, 9, 11), "mask", torch.contiguous_format, torch.float32),
        ((5, 6, 9, 11), "second", torch.channels_last, torch.float32),
        ((3, 8, 3, 5, 3), "all", torch.channels_last_3d, torch.bfloat16),
        ((0, 6, 2), "all", torch.contiguous_format, torch.float32),
    ],
    ids=str,
)
@every_packing
def test_values_and_gradients(backend, packing, shape, split, layout, dtype):  # noqa: F811
    inputs = make_inputs(shape, "tanh_gain", split=split, dtype=dtype)
    weights = torch.randn(shape).to(dtype), torch.randn(shape[0])
    together = packed(inputs, packing, layout)
    for inverse in (False, True):
        expected = values(affine_coupling, inputs, inverse)
        for name, value in values(affine_coupling_packed, together, inverse).items():
            assert torch.equal(value, expected[name]), name
        expected = gradients(affine_coupling, inputs, weights, inverse)
        grads = gradients(affine_coupling_packed, together, weights, inverse)
        parts = unpack(grads["parameters"], PACKINGS.index(packing))
        for name, grad in {**grads, "scale": parts[0], "shift": parts[1]}.items():
            if name != "parameters":
                torch.testing.assert_close(grad, expected[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        if backend != "reference":
            assert grads["parameters"].stride() == together["parameters"].stride()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@every_packing
def test_gradients_against_finite_differences(packing, inverse):
    together = packed(make_inputs((3, 6), "sigmoid", split="second"), packing)
    tensors = leaves(together)

    def function(*given):
        return call(affine_coupling_packed, together, dict(zip(tensors, given, strict=True)), inverse)

    assert gradcheck(function, tuple(tensors.values()))
    assert gradgradcheck(function, tuple(tensors.values()))


@every_packing
def test_compiles_into_one_graph(packing):
    inputs = make_inputs((4, 6, 3, 3), "exp", split="odd", dtype=torch.float32)
    together, weights = packed(inputs, packing, torch.channels_last), (torch.randn(4, 6, 3, 3), torch.randn(4))
    torch.compiler.reset()
    compiled = torch.compile(affine_coupling_packed, fullgraph=True, backend="aot_eager")
    expected = gradients(affine_coupling_packed, together, weights, False)
    for name, grad in gradients(compiled, together, weights, False).items():
        torch.testing.assert_close(grad, expected[name])


def test_a_strided_view_of_parameters_is_read_in_place():
    inputs = make_inputs((5, 6), "sigmoid", split="second", dtype=torch.float32)
    together = packed(inputs, "scale_shift")
    wide = torch.randn(5, 6, 2)
    wide[..., 1] = together["parameters"]
    z, log_det = affine_coupling_packed(**{**together, "parameters": wide[..., 1]})
    torch.testing.assert_close((z, log_det), eager(**inputs))


@every_packing
def test_the_layer_gives_its_conditioner_one_gradient(packing):
    """No node between the coupling and what the conditioner returned."""
    made = []

    def conditioner(passive):
        made.append(torch.cat([passive, passive.sin()], 1) * 1.5)
        return made[-1]

    z, _ = AffineCoupling(conditioner, Split.halves(), packing=packing)(torch.randn(4, 6, requires_grad=True))
    assert made[0].grad_fn in [function for function, _ in z.grad_fn.next_functions]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"packing": "st"}, ValueError, "packing is 'st', expected one of scale_shift, shift_scale,"),
        ({"parameters": [1.0]}, TypeError, "parameters is list, expected a Tensor"),
        ({"parameters": torch.zeros(4, 6)}, ValueError, "parameters has shape (4, 6), expected (4, 12)"),
        ({"parameters": torch.zeros(4, 12).int()}, TypeError, "parameters has dtype torch.int32, expected"),
        ({"parameters": torch.zeros(4, 12, device="meta")}, ValueError, "parameters is on meta, expected cpu"),
        ({"x": None}, TypeError, "x is NoneType, expected a Tensor"),
        ({"scale_map": ScaleMap("additive")}, ValueError, "the additive scale map has no scale"),
        ({"active": slice(3, None)}, ValueError, "parameters has shape (4, 12), expected (4, 6)"),
        ({"log_det": torch.zeros(5)}, ValueError, "log_det has shape (5,), expected (4,)"),
    ],
    ids=str,
)
def test_bad_input(changed, error, message):
    arguments = {"x": torch.zeros(4, 6), "parameters": torch.zeros(4, 12), "packing": "scale_shift",
                 "scale_map": ScaleMap("sigmoid"), **changed}  # fmt: skip
    with pytest.raises(error, match="^affine_coupling_packed: " + re.escape(message)):
        affine_coupling_packed(**arguments)
