"""Tuned tiles: the table that `fastflow bench tune` writes, what loads it, and what is no table."""

import json
import os
import subprocess
import sys

import pytest
from needs import require

from fastflow.bench import tune


@pytest.fixture(autouse=True)
def triton():
    require("triton")


@pytest.fixture
def launch(monkeypatch):
    """The module, with the device's name for a table, and untuned again afterwards."""
    from fastflow.kernels import launch, launch_table

    monkeypatch.setattr(launch_table, "device_name", lambda: "Some GPU")
    yield launch
    launch.use({})


TILE = {"family": "row_reduction", "itemsize": 4, "features": 1024, "rows": 65536, "block_rows": 2,
        "block_features": 1024, "num_warps": 8, "speedup": 1.1}


def write(path, **changes):
    import triton

    path.write_text(json.dumps({"device": "Some GPU", "triton": triton.__version__, "tiles": [TILE]} | changes))
    return path


def test_a_table_serves_its_shapes_and_the_heuristic_all_others(launch, tmp_path):
    usual = [launch.row_reduction(rows, 784, 4, 132) for rows in (65536, 256)]
    by_column = launch.column_reduction(65536, 784, 4, 132, False)
    launch.load_table(write(tmp_path / "table.json"))
    assert launch.row_reduction(65536, 784, 4, 132) == launch.Launch(2, 1024, 8, 32768, 1)
    assert launch.row_reduction(40000, 600, 4, 132) == launch.Launch(2, 1024, 8, 20000, 1)  # the same bucket
    assert launch.row_reduction(256, 784, 4, 132) == usual[1]
    assert launch.column_reduction(65536, 784, 4, 132, False) == by_column
    launch.use({})
    assert launch.row_reduction(65536, 784, 4, 132) == usual[0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"device": "Another GPU"}, "is for device 'Another GPU', expected 'Some GPU'; tune again here"),
    ({"triton": "2.0"}, "is for triton '2.0', expected"),
    ({"tiles": [TILE | {"block_rows": 3}]}, "is no tile: expected"),
    ({"tiles": [TILE | {"block_rows": 2**13}]}, "is no tile: expected"),
    ({"tiles": [TILE | {"family": "rows"}]}, "is no tile: expected"),
    ({"tiles": [{}]}, "is not a file of `fastflow bench tune`: KeyError"),
    ({"tiles": None}, "is not a file of `fastflow bench tune`: TypeError"),
])
def test_what_is_no_table_for_this_machine_is_refused(launch, tmp_path, changes, message):
    with pytest.raises(ValueError, match="launch table: ") as error:
        launch.load_table(write(tmp_path / "table.json", **changes))
    assert message in str(error.value)
    assert launch.row_reduction(65536, 784, 4, 132).block_rows == 4


def test_a_list_or_a_text_is_no_table(launch, tmp_path):
    for text in ("[]", "no JSON"):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(ValueError, match="is not a file of `fastflow bench tune`"):
            launch.load_table(tmp_path / "table.json")


def test_candidates_are_few_and_fit():
    for features in (1, 64, 784, 200_000):
        tiles = tune.candidates(features)
        assert 2 <= len(tiles) <= 12
        for rows, width, warps in tiles:
            assert width < 2 * features
            assert rows * width <= 2**14
            assert warps in (2, 4, 8, 16)


def interpreting(*command, **environment):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def test_tune_writes_a_table_that_the_environment_loads(tmp_path):
    """In the interpreter, which tries the machinery and nothing else."""
    path = tmp_path / "table.json"
    done = interpreting("-m", "fastflow", "bench", "tune", "--device", "cpu-interpreter", "--op", "logit",
                        "--seconds", "0.01", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert "its times and tiles mean nothing" in done.stdout
    content = json.loads(path.read_text())
    assert content["device"] == "Triton interpreter"
    path.write_text(json.dumps(content | {"tiles": [TILE | {"rows": 8, "features": 64, "block_features": 64}]}))

    code = "from fastflow.kernels import launch; print(launch.row_reduction(6, 40, 4, 4).num_warps)"
    loaded = interpreting("-c", code, FASTFLOW_LAUNCH_TABLE=str(path), TRITON_INTERPRET="1")
    assert (loaded.stdout, loaded.stderr) == ("8\n", "")
    elsewhere = interpreting("-c", code, FASTFLOW_LAUNCH_TABLE=str(path), TRITON_INTERPRET="0")
    assert elsewhere.stdout == "1\n"
    assert elsewhere.stderr.count("FASTFLOW_LAUNCH_TABLE is not used") == 1


def test_tune_refuses_an_op_without_a_kernel(tmp_path):
    with pytest.raises(ValueError, match=r"op is 'nope', expected one with a Triton kernel and GPU cases: .*logit"):
        tune.main("cuda", "nope", 0.01, tmp_path / "table.json")
