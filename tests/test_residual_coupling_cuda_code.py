"""The CUDA C++ kernels of residual_coupling without a device: run on the host, thread by thread, tensor cores and all."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from needs import require
from residual_coupling_cases import Case, assert_backward, assert_forward
from torch import Tensor

import fastflow

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


def _forward(host, passive, active, log_det, table, weights, pairs, passive_shared, active_shared, *settings):
    count = pairs.shape[0] if pairs is not None else passive.shape[0] * (table.shape[0] if passive_shared else 1)
    z, log_det_out = torch.empty(count, active.shape[1]), torch.empty(count)
    problem = _problem(passive, table, weights, pairs, passive_shared, count, active.shape[1], settings)
    problem.active_shared, problem.active, problem.log_det = active_shared, _view(active), _view(log_det)
    problem.z, problem.log_det_out = z.data_ptr(), log_det_out.data_ptr()
    bf16 = weights[0].dtype == torch.bfloat16
    host.forward(ctypes.byref(problem), _matrices(weights), ctypes.c_bool(bf16), ctypes.c_int64(processors),
                 ctypes.c_int64(passive.shape[0]))
    return z, log_det_out


def _backward(host, passive, z, table, weights, pairs, passive_shared, *settings_and_grads):
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


CASES = [
    Case(7, 5, 13, 11, 48, 1, passive_shared=True, active_shared=True),
    Case(7, 5, 13, 11, 48, 1, torch.bfloat16, passive_shared=True, active_shared=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(host, case):
    operands = case.operands()
    assert_forward(case, _forward(host, *operands), operands)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(host, case):
    operands = case.backward_operands()
    assert_backward(case, _backward(host, *operands), operands)
