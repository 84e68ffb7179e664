"""The CUDA C++ kernels of residual_coupling without a device: on the host, thread by thread, and their machine code."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_code import ARCHITECTURES, instructions, kernels
from needs import require
from residual_coupling_cases import Case, assert_backward, assert_forward, flat
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastflow
from fastflow.ops.residual_coupling import backward_op, forward_op
from fastflow.ops.scale_map import KINDS

ROOT = Path(fastflow.__file__).resolve().parent.parent


class View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("column", ctypes.c_int64))


class Schedule(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("width", "depth", "hidden", "passive", "active", "blocks")]


class ScaleMap(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("bias", ctypes.c_float), ("eps", ctypes.c_float), ("clamp", ctypes.c_float),
                ("shift_first", ctypes.c_bool))


class Problem(ctypes.Structure):
    _fields_ = (
        ("schedule", Schedule), ("map", ScaleMap), *((name, ctypes.c_int64) for name in ("first", "count", "classes")),
        ("passive_shared", ctypes.c_bool), ("active_shared", ctypes.c_bool), ("pairs", ctypes.c_void_p),
        *((name, View) for name in ("passive", "active", "table", "log_det", "first_layer")),
        ("slices", ctypes.c_void_p), ("slice_count", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("vectors", "z", "log_det_out")),
        *((name, View) for name in ("given_z", "grad_z", "grad_log_det")),
        *((name, ctypes.c_void_p) for name in ("active_out", "grad_active", "grad_passive", "workspace",
                                               "workspace_class")))


def _view(tensor: Tensor | None) -> View:
    if tensor is None:
        return View()
    return View(tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if tensor.dim() == 2 else 0)


def _problem(passive, table, weights, pairs, passive_shared, count, active, settings) -> Problem:
    problem = Problem(
        schedule=Schedule(0, 0, table.shape[1], passive.shape[1], active, (len(weights) - 5) // 4),
        map=ScaleMap(*settings), count=count, classes=table.shape[0], passive_shared=passive_shared,
        passive=_view(passive), table=_view(table))
    problem.pairs = None if pairs is None else pairs.data_ptr()
    return problem


def _matrices(weights: list[Tensor]) -> ctypes.Array:
    return (View * len(weights))(*map(_view, weights))


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    require("compiler")
    path = tmp_path_factory.mktemp("native") / "residual_coupling.so"
    subprocess.run([shutil.which("g++"), "-std=c++17", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC",
                    f"-I{ROOT / 'csrc'}", "-o", path, ROOT / "tests" / "native" / "residual_coupling.cpp"], check=True)
    return ctypes.CDLL(str(path))


def _forward(host, processors, passive, active, log_det, table, weights, pairs, passive_shared, active_shared,
             *settings):
    count = pairs.shape[0] if pairs is not None else passive.shape[0] * (table.shape[0] if passive_shared else 1)
    z, log_det_out = torch.empty(count, active.shape[1]), torch.empty(count)
    problem = _problem(passive, table, weights, pairs, passive_shared, count, active.shape[1], settings)
    problem.active_shared, problem.active, problem.log_det = active_shared, _view(active), _view(log_det)
    problem.z, problem.log_det_out = z.data_ptr(), log_det_out.data_ptr()
    bf16 = weights[0].dtype == torch.bfloat16
    host.forward(ctypes.byref(problem), _matrices(weights), ctypes.c_bool(bf16), ctypes.c_int64(processors),
                 ctypes.c_int64(passive.shape[0]))
    return z, log_det_out


def _backward(host, processors, passive, z, table, weights, pairs, passive_shared, *settings_and_grads):
    *settings, grad_z, grad_log_det = settings_and_grads
    problem = _problem(passive, table, weights, pairs, passive_shared, z.shape[0], z.shape[1], settings)
    problem.given_z, problem.grad_z, problem.grad_log_det = _view(z), _view(grad_z), _view(grad_log_det)
    active, grad_active = torch.empty(z.shape), torch.empty(z.shape)
    grad_passive, grad_table = torch.empty(z.shape[0], passive.shape[1]), torch.empty(table.shape)
    grads = [torch.empty(weight.shape) for weight in weights]
    problem.active_out, problem.grad_active = active.data_ptr(), grad_active.data_ptr()
    problem.grad_passive = grad_passive.data_ptr()
    bf16 = weights[0].dtype == torch.bfloat16
    host.backward(ctypes.byref(problem), _matrices(weights), ctypes.c_bool(bf16), ctypes.c_int64(processors),
                  ctypes.c_void_p(grad_table.data_ptr()),
                  (ctypes.c_void_p * len(grads))(*(grad.data_ptr() for grad in grads)))
    return active, grad_active, grad_passive, grad_table, grads


def _short_and_tall(*cases: Case) -> list:
    """With a device of so many processors that a short tile serves, and of none."""
    return [pytest.param(case, processors, id=f"{case} {name}") for case in cases
            for processors, name in ((1000, "short"), (0, "tall"))]


CASES = [
    *_short_and_tall(
        Case(21, 5, 13, 11, 48, 1, passive_shared=True, active_shared=True),
        Case(21, 5, 13, 11, 48, 1, torch.bfloat16, passive_shared=True, active_shared=True)),
    # Every pair, nothing shared; one class; widths of SCNF's head.
    *(pytest.param(Case(33, 1, 98, 98, 256, 1, dtype, log_det=False, shift_first=False), 1000, id=f"wide {dtype}")
      for dtype in (torch.float32, torch.bfloat16)),
    # Pairs in any order, some twice, fewer than rows, which the first layer then follows.
    pytest.param(Case(50, 3, 5, 4, 20, 0, pairs=37, passive_shared=True), 1000, id="pairs"),
    pytest.param(Case(9, 4, 5, 4, 20, 2, torch.bfloat16, pairs=30, passive_shared=True, active_shared=True), 1000,
                 id="pairs bf16"),
    # More inputs than the shared memory holds, more outputs than a pass makes, more columns than four warps.
    pytest.param(Case(3, 2, 300, 260, 200, 0), 1000, id="passes"),
    pytest.param(Case(3, 2, 300, 260, 200, 0, torch.bfloat16, passive_shared=True), 1000, id="passes bf16"),
    pytest.param(Case(5, 3, 30, 7, 272, 1), 1000, id="hidden"),
    pytest.param(Case(17, 3, 30, 7, 512, 1, torch.bfloat16), 1000, id="hidden bf16"),
    *(pytest.param(Case(20, 2, 3, 5, 7, 1, kind=kind, shift_first=first), 1000, id=f"{kind} {first}")
      for kind in KINDS if kind != "additive" for first in (True, False)),
]


@pytest.mark.parametrize(("case", "processors"), CASES)
def test_forward(host, case, processors):
    operands = case.operands()
    assert_forward(case, _forward(host, processors, *operands), operands)


@pytest.mark.parametrize(("case", "processors"), CASES)
def test_backward(host, case, processors):
    operands = case.backward_operands()
    assert_backward(case, _backward(host, processors, *operands), operands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_several_splits_and_chunks(host, dtype):
    """Float32: two chunks; bfloat16: two splits of rows."""
    case = Case(1040, 3, 3, 2, 8, 0, dtype, pairs=1040)
    operands = case.backward_operands()
    assert_backward(case, _backward(host, 1000, *operands), operands)


def test_bits_do_not_depend_on_the_tile(host):
    operands = Case(21, 5, 13, 11, 48, 1, passive_shared=True, active_shared=True).backward_operands()
    short, tall = (flat(_backward(host, processors, *operands)) for processors in (1000, 0))
    assert all(torch.equal(one, other) for one, other in zip(short, tall, strict=True))


def test_results_do_not_depend_on_other_pairs(host):
    """Not a NaN of theirs either."""
    case = Case(21, 5, 13, 11, 48, 1, torch.bfloat16)
    operands = case.operands()
    alone = _forward(host, 1000, *operands)
    operands[0][3] = torch.nan
    beside = _forward(host, 1000, *operands)
    others = torch.arange(case.results) != 3
    assert all(torch.equal(one[others], other[others]) for one, other in zip(alone, beside, strict=True))
    assert beside[0][3].isnan().all()


def _tf32(x: np.ndarray) -> np.ndarray:
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _toward_zero(sums: np.ndarray) -> np.ndarray:
    nearest = sums.astype(np.float32)
    return np.where(abs(nearest.astype(float)) > abs(sums), np.nextafter(nearest, np.float32(0)), nearest)


@pytest.mark.parametrize("depth", [32, 256, 512])
def test_three_products_of_tf32_round_like_float32(depth):
    """As `multiply_add` has it: what a tensor core adds up, eight terms, goes on in float32. Its own sums of all terms,
    rounded toward zero, would not do."""
    random = np.random.default_rng(0)
    a = np.maximum(random.standard_normal((128, depth)), 0).astype(np.float32)
    b = (random.standard_normal((depth, 128)) / depth**0.5).astype(np.float32)
    truth, eager = a.astype(float) @ b, (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    parts = [(a - _tf32(a), _tf32(b)), (_tf32(a), b - _tf32(b)), (_tf32(a), _tf32(b))]
    kept, left = np.zeros_like(eager), np.zeros_like(eager)
    for k in range(0, depth, 8):
        part = np.zeros_like(eager)
        for one, other in parts:
            product = one[:, k : k + 8].astype(float) @ other[k : k + 8]
            part, left = _toward_zero(part + product), _toward_zero(left + product)
        kept += part
    error, own, worse = (np.sqrt(((found - truth) ** 2).mean()) for found in (kept, eager, left))
    assert error <= 2 * own
    assert worse >= 2 * error


# {start of a name and of template arguments: kernels an architecture has, registers}: none spills; of 256 threads with
# 255 registers one block fits, with 128 two.
BUDGETS = {
    "pack_kernel": (4, 32), "first_layer_kernel": (6, 255), "kernel": (6, 255), "backward_kernel": (6, 255),
    "column_sums_kernel": (2, 48), "class_sums_kernel": (2, 48), "reduce_kernel": (1, 40),
    "products_kernel<fastflow": (1, 128), "products_kernel<float": (1, 255),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_machine_code_does_not_spill(name):
    count, registers = BUDGETS[name]
    found = kernels(f"residual_coupling_{name}")
    assert [sum(kernel.architecture == each for kernel in found) for each in ARCHITECTURES] == [count] * 3
    for kernel in found:
        assert (kernel.stack, kernel.local) == (0, 0), f"{kernel} spills"
        assert kernel.registers <= registers, kernel
        assert kernel.shared <= 4096, kernel


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_made_by_tensor_cores(architecture):
    found = instructions(architecture, "residual_coupling_(first_layer_|backward_|products_|)kernel")
    assert len(found) == 6 + 6 + 6 + 2
    for name, code in found.items():
        bf16 = "Bf16" in name
        sums = [each for each in code if each.startswith("HMMA")]
        expected = "HMMA.16816.F32.BF16" if bf16 else "HMMA.1688.F32.TF32"
        assert len(sums) >= 8, name
        assert set(sums) == {expected}, name
        assert any(each.startswith("LDGSTS") for each in code), f"{name} does not copy while it computes"
        assert any(each.startswith("LDSM") for each in code) or ("products" in name and not bf16), name


@pytest.mark.parametrize(("op", "operands"), [
    (forward_op, Case(5, 3, 13, 11, 48, 1).operands), (backward_op, Case(5, 3, 13, 11, 48, 1).backward_operands)])
def test_registered_under_the_schema_of_the_op(op, operands):
    require("nvcc")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastflow_cuda::{op.name}", "CUDA")
    own = getattr(torch.ops.fastflow_cuda, op.name).default
    assert str(own._schema) == str(op.dispatch._schema).replace("fastflow::", "fastflow_cuda::")
    given, expected = operands(), op.reference(*operands())
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = own(*given)
    assert [each.shape for each in flat(found)] == [each.shape for each in flat(expected)]
