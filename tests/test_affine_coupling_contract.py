"""affine_coupling as PyTorch sees it: opcheck, torch.compile, torch.export, torch.func, and the errors of bad input."""

import re
from functools import partial

import pytest
import torch
from coupling_cases import SPLITS, eager, gradients, leaves, make_inputs, with_gain
from oracles import relayout
from torch.autograd import forward_ad

from fastflow._backend import backend
from fastflow.ops import ScaleMap, affine_coupling
from fastflow.ops.affine_coupling import _check


def schema_arguments(inputs: dict, inverse: bool) -> tuple:
    """The arguments of the registered op for those of the public function."""
    m, log_det = inputs["scale_map"], inputs["log_det"]
    x, scale, shift = inputs["x"], inputs["scale"], inputs["shift"]
    _, gain, mask, settings = _check("affine_coupling", x, m, inputs["active"], inputs["mask"], log_det, inverse)
    return x, scale, shift, gain, mask, log_det, *settings


@pytest.mark.parametrize(
    ("name", "split", "shape", "layout", "dtype"),
    [
        ("sigmoid", "second", (4, 6), "contiguous", torch.float32),
        ("exp", "odd", (3, 6, 4, 5), "channels_last", torch.bfloat16),
        ("tanh_gain", "mask", (3, 4, 5, 2), "transposed", torch.float64),
        ("additive", "all", (5, 3, 7), "strided", torch.float16),
        ("tanh_gain", "second", (0, 4, 3), "contiguous", torch.float32),
        ("soft_clip", "mask", (2, 3, 0), "contiguous", torch.float32),
    ],
    ids=str,
)
def test_opcheck(name, split, shape, layout, dtype):
    inputs = make_inputs(shape, name, split=split, dtype=dtype, running=split != "odd")
    inputs["x"] = relayout(inputs["x"], layout) if inputs["x"].numel() else inputs["x"]
    arguments = schema_arguments(inputs, inverse=split == "mask")
    torch.library.opcheck(torch.ops.fastflow.affine_coupling.default, arguments)
    x, scale, shift, gain, mask, _, *settings = arguments
    grad_z = relayout(torch.randn(shape).to(dtype), layout) if x.numel() else torch.empty_like(x)
    grad_log_det = None if split == "odd" else torch.randn(shape[0], dtype=inputs["log_det"].dtype)
    for from_input, packing in ((False, 0), (True, 3)) if scale is not None else ():
        torch.library.opcheck(
            torch.ops.fastflow.affine_coupling_backward.default,
            (grad_z, grad_log_det, x, scale, shift, gain, mask, *settings, from_input, packing),
        )


def gradients_when_compiled(inputs: dict, weights: tuple, compiler: str, inverse: bool = False) -> dict:
    torch.compiler.reset()
    return gradients(torch.compile(affine_coupling, fullgraph=True, backend=compiler), inputs, weights, inverse)


@pytest.mark.parametrize(
    ("compiler", "name", "split"),
    [("inductor", "tanh_gain", "second"), ("aot_eager", "sigmoid", "odd"), ("aot_eager", "additive", "all"),
     ("aot_eager", "soft_clip", "mask")],
)  # fmt: skip
def test_compiles_into_one_graph_with_backward(compiler, name, split):
    inputs = make_inputs((4, 6, 3), name, split=split, dtype=torch.float32)
    weights = (torch.randn(4, 6, 3), torch.randn(4))
    expected = gradients(affine_coupling, inputs, weights, False)
    for key, grad in gradients_when_compiled(inputs, weights, compiler).items():
        torch.testing.assert_close(grad, expected[key], msg=lambda m, k=key: f"{k}: {m}")


def test_one_graph_serves_every_batch_size():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(affine_coupling, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for rows in (4, 7, 33):
        inputs = make_inputs((rows, 6), "sigmoid", split="second", dtype=torch.float32)
        weights = (torch.randn(rows, 6), torch.randn(rows))
        expected = gradients(affine_coupling, inputs, weights, False)
        for key, grad in gradients(compiled, inputs, weights, False).items():
            torch.testing.assert_close(grad, expected[key])
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[2]


def test_two_calls_by_one_map_compile_with_symbolic_sizes():
    torch.compiler.reset()
    scale_map, linear = ScaleMap("sigmoid", bias=2.0, eps=1e-3), torch.nn.Linear(3, 3)

    def two(x):
        for _ in range(2):
            x, log_det = affine_coupling(x, linear(x[:, :3]), x[:, :3], scale_map=scale_map, active=slice(3, None))
        return x, log_det

    compiled = torch.compile(two, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        x = torch.randn(rows, 6)
        for one, other in zip(compiled(x), two(x), strict=True):
            torch.testing.assert_close(one, other)
        compiled(x)[1].sum().backward()


def test_forcing_a_backend_changes_the_compiled_graph():
    torch.compiler.reset()
    targets = []

    def record(graph, example_inputs):
        targets.append([node.target for node in graph.graph.nodes])
        return graph

    inputs = make_inputs((4, 6), "sigmoid", split="second", dtype=torch.float32)
    compiled = torch.compile(affine_coupling, fullgraph=True, backend=record)
    for name in ("auto", "reference", "auto"):
        with backend(name):
            torch.testing.assert_close(compiled(**inputs), affine_coupling(**inputs))
    assert [torch.ops.fastflow.affine_coupling.default in graph for graph in targets] == [True, False]


def test_exports_as_one_node_with_any_batch_size():
    class Model(torch.nn.Module):
        def forward(self, x, scale, shift):
            return affine_coupling(x, scale, shift, scale_map=ScaleMap("sigmoid", bias=2.0), active=slice(3, None))

    def arguments(rows):
        inputs = make_inputs((rows, 6), "sigmoid", split="second", dtype=torch.float32)
        return inputs["x"], inputs["scale"], inputs["shift"]

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Model(), arguments(4), dynamic_shapes=(batch, batch, batch))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.fastflow.affine_coupling.default) == 1
    given = arguments(9)
    torch.testing.assert_close(program.module()(*given), Model()(*given))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["additive", "sigmoid", "tanh_gain"])
def test_function_transforms(name, split):
    inputs = make_inputs((4, 5), name, split=split, running=False)
    tensors = leaves(inputs)
    names = [key for key in tensors if key != "gain"]
    plain = [tensors[key].detach() for key in names]

    def total(function):
        def loss(*given):
            z, log_det = function(**{**inputs, **dict(zip(names, given, strict=True))})
            return z.square().sum() + log_det.sum()

        return loss

    every = tuple(range(len(plain)))
    directions = tuple(torch.randn_like(tensor) for tensor in plain)
    ours, theirs = total(affine_coupling), total(eager)
    compare = torch.testing.assert_close
    compare(torch.func.grad(ours, every)(*plain), torch.func.grad(theirs, every)(*plain))
    compare(torch.func.jvp(ours, tuple(plain), directions), torch.func.jvp(theirs, tuple(plain), directions))
    compare(torch.func.hessian(ours)(*plain), torch.func.hessian(theirs)(*plain))
    problems = [tensor[:, None] for tensor in plain]
    compare(torch.vmap(torch.func.grad(ours, every))(*problems), torch.vmap(torch.func.grad(theirs, every))(*problems))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor, direction) for tensor, direction in zip(plain, directions, strict=True)]
        compare(forward_ad.unpack_dual(ours(*duals)).tangent, forward_ad.unpack_dual(theirs(*duals)).tangent)


def test_function_transforms_compile():
    torch.compiler.reset()
    inputs = make_inputs((4, 6), "sigmoid", split="second", dtype=torch.float32, running=False)

    def loss(x, scale):
        z, log_det = affine_coupling(**{**inputs, "x": x, "scale": scale})
        return z.square().sum() + log_det.sum()

    for transform in (
        torch.func.grad(loss, (0, 1)),
        lambda x, scale: torch.func.jvp(loss, (x, scale), (x.sin(), scale.cos())),
        lambda x, scale: torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(torch.stack([x, x.sin()]), scale),
    ):
        compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
        given = inputs["x"], inputs["scale"]
        torch.testing.assert_close(compiled(*given), transform(*given))


x_2d, x_4d = torch.zeros(4, 6), torch.zeros(2, 6, 3, 3)
sigmoid, additive, tanh_with = ScaleMap("sigmoid"), ScaleMap("additive"), partial(ScaleMap, "tanh", 0.0, 0.0, 1.0)
BAD = {
    "x not a tensor": ({"x": [1.0]}, TypeError, "x is list, expected a Tensor"),
    "x integers": ({"x": x_2d.int()}, TypeError, "x has dtype torch.int32, expected"),
    "x complex": ({"x": x_2d.cfloat()}, TypeError, "x has dtype torch.complex64, expected"),
    "x one dim": ({"x": torch.zeros(6)}, ValueError, "x has shape (6,), expected 2 to 5 dims"),
    "x six dims": ({"x": torch.zeros(1, 6, 1, 1, 1, 1)}, ValueError, "x has shape (1, 6, 1, 1, 1, 1), expected 2 to 5"),
    "scale missing": ({"scale": None}, ValueError, "scale is None, expected a Tensor for scale map 'sigmoid'"),
    "scale not wanted": ({"scale_map": additive}, ValueError, "scale is a Tensor, expected None for"),
    "scale not a tensor": ({"scale": 1.0}, TypeError, "scale is float, expected a Tensor"),
    "scale shape": ({"scale": torch.zeros(4, 3)}, ValueError, "scale has shape (4, 3), expected (4, 6)"),
    "scale one row": ({"scale": torch.zeros(1, 6)}, ValueError, "scale has shape (1, 6), expected (4, 6)"),
    "scale integers": ({"scale": x_2d.int(), "shift": x_2d.int()}, TypeError, "has dtype torch.int32, expected"),
    "scale dtype": ({"scale": x_2d.bfloat16()}, TypeError, "scale has dtype torch.bfloat16, expected torch.float32"),
    "scale device": ({"scale": x_2d.to("meta")}, ValueError, "scale is on meta, expected cpu"),
    "shift not a tensor": ({"shift": None}, TypeError, "shift is NoneType, expected a Tensor"),
    "shift shape": ({"shift": torch.zeros(4, 8)}, ValueError, "shift has shape (4, 8), expected (4, 6)"),
    "shift dims": ({"shift": torch.zeros(4, 6, 1)}, ValueError, "shift has shape (4, 6, 1), expected (4, 6)"),
    "shift device": ({"shift": x_2d.to("meta")}, ValueError, "shift is on meta, expected cpu"),
    "scale_map a string": ({"scale_map": "exp"}, TypeError, "scale_map is str, expected a ScaleMap"),
    "active a list": ({"active": [0, 2]}, TypeError, "active is list, expected a slice"),
    "active backwards": ({"active": slice(None, None, -1)}, ValueError, "expected at least one channel and a step"),
    "active nothing": ({"active": slice(6, None)}, ValueError, "selects 0 of 6 channels"),
    "active shape": ({"active": slice(3, None)}, ValueError, "shift has shape (4, 6), expected (4, 3)"),
    "active and mask": ({"active": slice(6), "mask": torch.ones(6).bool()}, ValueError, "active and mask are both"),
    "mask not a tensor": ({"mask": [True]}, TypeError, "mask is list, expected"),
    "mask floats": ({"mask": torch.ones(6)}, TypeError, "mask has dtype torch.float32, expected"),
    "mask shape": ({"mask": torch.ones(5).bool()}, ValueError, "mask has shape (5,), expected"),
    "mask with batch": ({"mask": x_2d.bool()}, ValueError, "mask has shape (4, 6), expected"),
    "mask device": ({"mask": torch.ones(6, device="meta").bool()}, ValueError, "mask is on meta, expected cpu"),
    "gain shape": ({"scale_map": tanh_with(torch.ones(5))}, ValueError, "gain has shape (5,), expected (6,)"),
    "gain integers": ({"scale_map": tanh_with(torch.ones(6).int())}, TypeError, "gain has dtype torch.int32"),
    "gain device": ({"scale_map": tanh_with(torch.ones(6, device="meta"))}, ValueError, "gain is on meta"),
    "log_det not a tensor": ({"log_det": 0.0}, TypeError, "log_det is float, expected a Tensor"),
    "log_det shape": ({"log_det": torch.zeros(4, 1)}, ValueError, "log_det has shape (4, 1), expected (4,)"),
    "log_det 0-dim": ({"log_det": torch.zeros(())}, ValueError, "log_det has shape (), expected (4,)"),
    "log_det dtype": ({"log_det": torch.zeros(4).double()}, TypeError, "log_det has dtype torch.float64, expected"),
    "log_det 16 bits": ({"log_det": torch.zeros(4).half()}, TypeError, "log_det has dtype torch.float16, expected"),
    "log_det device": ({"log_det": torch.zeros(4, device="meta")}, ValueError, "log_det is on meta, expected cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changed, error, message = BAD[case]
    arguments = {"x": x_2d, "scale": x_2d, "shift": x_2d, "scale_map": sigmoid, **changed}
    with pytest.raises(error, match=r"^affine_coupling: .*" + re.escape(message)):
        affine_coupling(**arguments)


@pytest.mark.parametrize("changed", [{"shift": torch.zeros(2, 6, 3, 1)}, {"shift": torch.zeros(2, 6)},
                                     {"mask": torch.ones(3, 6, 3, 3).bool()}])  # fmt: skip
def test_bad_input_of_images(changed):
    arguments = {"x": x_4d, "scale": x_4d, "shift": x_4d, "scale_map": sigmoid, **changed}
    with pytest.raises(ValueError, match=r"^affine_coupling: (shift|mask) has shape .*, expected .*\(?(2, )?6, 3, 3\)"):
        affine_coupling(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sigmoide"}, "kind is 'sigmoide', expected one of additive, exp,"),
        ({"kind": "exp", "bias": 2.0}, "bias has no meaning for kind 'exp'"),
        ({"kind": "inverse_sigmoid", "eps": 1e-3}, "eps has no meaning for kind 'inverse_sigmoid'"),
        ({"kind": "sigmoid", "eps": -1e-3}, "eps is -0.001"),
        ({"kind": "softplus"}, "eps is 0.0 for kind 'softplus', expected a number > 0"),
        ({"kind": "exp", "clamp": 2.0}, "clamp has no meaning for kind 'exp'"),
        ({"kind": "soft_clip", "clamp": 0.0}, "clamp is 0.0, expected a number > 0"),
        ({"kind": "soft_clip", "clamp": float("nan")}, "clamp is nan, expected a finite number"),
        ({"kind": "clamp_atan", "clamp": float("inf")}, "clamp is inf, expected a finite number"),
        ({"kind": "sigmoid", "bias": float("nan")}, "bias is nan, expected a finite number"),
        ({"kind": "sigmoid", "bias": float("-inf")}, "bias is -inf, expected a finite number"),
        ({"kind": "softplus", "eps": float("nan")}, "eps is nan, expected a finite number"),
        ({"kind": "sigmoid", "eps": float("inf")}, "eps is inf, expected a finite number"),
        ({"kind": "exp", "gain": torch.ones(3)}, "gain has no meaning for kind 'exp'"),
    ],
)
def test_bad_scale_map(settings, message):
    with pytest.raises(ValueError, match="^ScaleMap: " + re.escape(message)):
        ScaleMap(**settings)


def test_a_loss_of_log_det_alone_survives_an_overflowing_output():
    scale = torch.tensor([[200.0, 1.0]], requires_grad=True)
    z, log_det = affine_coupling(torch.ones(1, 2), scale, torch.zeros(1, 2), scale_map=ScaleMap("exp"))
    assert z.isinf().any()
    torch.testing.assert_close(torch.autograd.grad(log_det.sum(), scale)[0], torch.ones(1, 2))


def test_scalar_gain_serves_every_channel():
    inputs = make_inputs((4, 6), "tanh_gain", split="second", dtype=torch.float32)
    scalar, vector = (with_gain(inputs, gain) for gain in (torch.tensor(0.7), torch.full((3,), 0.7)))
    weights = (torch.randn(4, 6), torch.randn(4))
    one, many = (gradients(affine_coupling, given, weights, False) for given in (scalar, vector))
    torch.testing.assert_close(one["gain"], many["gain"].sum())
    assert torch.equal(affine_coupling(**scalar)[0], affine_coupling(**vector)[0])
