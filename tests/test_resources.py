"""The gate on machine code: it passes good kernels and catches bad ones, all of them compiled without a GPU."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton_process import INTERPRETED

from fastflow.bench import gate_cases
from fastflow.bench import resources as gate
from fastflow.bench.machine_code import Launch, launches, resources

pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")
CASE = gate_cases.CouplingCase("forward", "exp")


@triton.jit(do_not_specialize=["count"])
def double_kernel(x_ptr, z_ptr, count, BLOCK: tl.constexpr):
    """Scales float32 by a float64 constant, which makes the arithmetic float64."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < count)
    tl.store(z_ptr + offsets, x * tl.full([BLOCK], 0.1, tl.float64) + 1.0, mask=offsets < count)


@triton.jit
def specialising_kernel(x_ptr, count, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x_ptr + offsets, 1.0, mask=offsets < count)


def launch(case=CASE, **changes):
    """What the case launches, with other arguments."""
    found, = launches(case.call)
    return replace(found, arguments=found.arguments | changes)


def violations(launch, case=CASE, capability=90):
    return gate.violations(case, launch, resources(launch, capability))


@pytest.mark.parametrize("capability", gate.CAPABILITIES)
def test_a_good_kernel_passes(capability):
    assert violations(launch(), capability=capability) == []


def test_a_tile_that_spills_is_caught():
    additive = gate_cases.CouplingCase("forward", "additive")
    found = [each.split()[0] for each in violations(launch(additive, BLOCK_ROWS=32, BLOCK_FEATURES=1024), additive)]
    assert {"registers", "stack", "spills"} <= set(found)


def test_narrow_accesses_are_caught():
    found = violations(launch(ROW_ALIGN=1))
    assert [each.split()[0] for each in found] == ["loads", "stores"]
    assert "32" in found[0]
    assert "expected at least 6 x 128" in found[0]


def test_float64_arithmetic_on_float32_data_is_caught():
    x = torch.empty(4096, device="meta")
    arguments = {"x_ptr": x, "z_ptr": x, "count": 4096, "BLOCK": 1024}
    used = resources(Launch(double_kernel, arguments, {"num_warps": 4, "enable_fp_fusion": False}), 90)
    found = " ".join(gate.violations(CASE, launch(), used))
    assert f"{used.double_arithmetic} float64 instructions, expected none for float32" in found


def test_a_missing_fused_multiply_add_is_caught():
    used = resources(launch(gate_cases.CouplingCase("forward", "additive")), 90)
    assert "no fused multiply-add, expected some" in gate.violations(CASE, launch(), used)


def test_an_integer_that_would_compile_for_every_value_is_refused():
    arguments = {"x_ptr": torch.empty(64, device="meta"), "count": 60, "BLOCK": 64}
    with pytest.raises(ValueError, match="specialising_kernel: argument count is a run-time integer"):
        resources(Launch(specialising_kernel, arguments, {"num_warps": 4}), 90)


def test_recording_a_launch_runs_nothing_and_covers_every_kernel():
    launched = [launch(case) for case in gate.CASES]
    kernels = {each.kernel.__name__ for each in launched}
    assert kernels == {
        "act_norm_kernel", "act_norm_backward_kernel", "affine_coupling_kernel", "affine_coupling_backward_kernel",
        "channel_mix_kernel", "channel_mix_backward_kernel", "elementwise_bijection_kernel",
        "elementwise_bijection_backward_kernel", "uniform_noise_kernel", "dequantize_logit_kernel"}
    for formulas in ("MAP", "SLOPE"):
        given = {each.arguments[formulas].__module__ for each in launched if formulas in each.arguments}
        assert given == {"fastflow.kernels.logit", "fastflow.kernels.sym_log"}


def test_a_case_becomes_a_row_for_each_architecture():
    rows, wrong = gate.measure(gate_cases.CouplingCase("backward", "exp"))
    assert wrong == []
    assert [row.split(" | ")[:2] for row in rows] == [["| sm_80", "backward"], ["| sm_90", "backward"]]


def test_another_table_is_a_violation_unless_another_triton_made_it(capsys):
    table = gate.HEADER + "| sm_80 |"
    assert gate.difference(table, table) is None
    for other in ("", gate.HEADER + "| sm_90 |"):
        assert "resources.md differs" in gate.difference(table, other)
    assert capsys.readouterr().out == ""
    assert gate.difference(table, table.replace(f"Triton {triton.__version__} ", "Triton 1.0 ")) is None
    assert "not compared" in capsys.readouterr().out


def test_the_command_refuses_an_interpreting_process(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("sys.argv", ["resources"])
    with pytest.raises(SystemExit) as stopped:
        gate.main()
    assert stopped.value.code == 2
    assert "TRITON_INTERPRET is 1" in capsys.readouterr().err
