"""How fast is the affine coupling, over shapes and scale maps? `pytest benchmarks/bench_affine_coupling.py`.

The cases and calls of `fastflow bench` under pytest-benchmark, for its statistics, histograms and comparison of runs.
It times one provider after the other: ratios to quote come from `fastflow bench run`, which interleaves them.
"""

import pytest

from fastflow.bench import malloc
from fastflow.bench.cases import DIRECTIONS, SCALE_MAPS, Case
from fastflow.bench.providers import prepare
from fastflow.bench.timing import threads

SHAPES = [(256, 32), (4096, 64), (256, 12, 14, 14), (65536, 64)]


@pytest.fixture(params=[1, 2], ids=["T1", "T2"])
def cores(request):
    with threads(request.param):
        yield request.param


def measured(benchmark, cores: int, provider: str, case: Case) -> None:
    call = prepare(provider, case)
    call()
    benchmark.group = f"{case.name} T{cores}"
    benchmark.extra_info.update(threads=cores, bytes=case.bytes, flops=case.flops, malloc=malloc.description())
    benchmark(call)


@pytest.mark.parametrize("provider", ["fastflow", "compile", "eager"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes(benchmark, cores, shape, direction, provider):
    measured(benchmark, cores, provider, Case("affine_coupling", shape, "sigmoid", direction))


@pytest.mark.parametrize("provider", ["fastflow", "compile"])
@pytest.mark.parametrize("variant", SCALE_MAPS)
def test_scale_maps(benchmark, cores, variant, provider):
    measured(benchmark, cores, provider, Case("affine_coupling", (4096, 64), variant, "forward"))
