"""Keyed noise: the published Philox vectors, independence of how rows are batched, uniform statistics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits_on_any_threads

from fastflow._backend import backend as forced_backend
from fastflow.ops import uniform_noise
from fastflow.ops.uniform_noise import philox, reference


@pytest.fixture
def backend():
    """The native library."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("fastflow::uniform_noise", "CPU"):
        pytest.skip("the native library is not built here")
    with forced_backend("cpu"):
        yield "cpu"


# Known answers of Random123, the authors' own library (tests/kat_vectors, philox4x32 with 10 rounds).
@pytest.mark.parametrize(("counter", "key", "words"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
], ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter, key, words):
    given_counter = tuple(torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox(given_counter, key)) == words


SEEDS = [0, 0x89ABCDEF, 0xFEDCBA9876543210, -1, 2**31]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 33, 127, 601])
def test_kernels_draw_the_bits_of_the_definition(backend, width, dtype):
    rows = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, -1, 7, 7, 3, 12345678901])
    for seed, step in zip(SEEDS, [0, 1, 2**31, 2**32 - 1, 77], strict=True):
        noise = uniform_noise((11, width), seed=seed, step=step, rows=rows, dtype=dtype)
        expected = reference(torch.tensor((seed + 2**63) % 2**64 - 2**63), torch.tensor(step), rows, width, dtype)
        assert noise.dtype == dtype
        assert torch.equal(noise, expected)
        held = {"seed": torch.tensor((seed + 2**63) % 2**64 - 2**63), "step": torch.tensor([step])}
        assert torch.equal(noise, uniform_noise((11, width), rows=rows, dtype=dtype, **held))
    spread = rows.repeat_interleave(3)[::3]
    assert torch.equal(noise, uniform_noise((11, width), seed=seed, step=step, rows=spread, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 5), (0,), (3, 0), (3, 2, 0)], ids=str)
def test_nothing_to_draw(backend, shape):
    assert uniform_noise(shape, seed=0, step=0, rows=torch.arange(shape[0])).shape == shape


def test_a_number_a_row(backend):
    rows = torch.arange(3)
    assert torch.equal(uniform_noise((3,), seed=1, step=2, rows=rows),
                       uniform_noise((3, 5), seed=1, step=2, rows=rows)[:, 0])


def test_many_threads_give_the_same_bits():
    assert_same_bits_on_any_threads(lambda: [uniform_noise((3001, 70), seed=5, step=6, rows=torch.arange(3001))])


@pytest.mark.parametrize(("rows", "elements"), [(4, 6), (3, 601), (0, 4), (4, 0)])
def test_opcheck(rows, elements):
    torch.library.opcheck(torch.ops.fastflow.uniform_noise.default,
                          (torch.tensor(-5), torch.tensor(3), torch.arange(rows), elements, torch.float64))


def test_compiles_into_one_graph():
    torch.compiler.reset()

    def draw(step, rows):
        return uniform_noise((len(rows), 5), seed=2**63, step=step, rows=rows)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for step, rows in ((3, torch.arange(4)), (4, torch.arange(7)), (torch.tensor(5), torch.arange(7))):
        assert torch.equal(compiled(step, rows), draw(step, rows))


@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1), cut=st.integers(0, 12), width=st.integers(0, 9))
def test_depends_on_the_row_alone_not_on_its_place(seed, step, cut, width):
    rows = torch.randperm(12) + 2**33
    noise = uniform_noise((12, width), seed=seed, step=step, rows=rows)
    parts = [uniform_noise((len(part), width), seed=seed, step=step, rows=part) for part in (rows[:cut], rows[cut:])]
    assert torch.equal(noise, torch.cat(parts))
    order = torch.randperm(12)
    assert torch.equal(noise[order], uniform_noise((12, width), seed=seed, step=step, rows=rows[order]))


def test_shape_is_only_a_view_and_dtype_only_a_cast():
    rows = torch.arange(5, dtype=torch.int32)
    noise = uniform_noise((5, 2, 3, 4), seed=1, step=2, rows=rows)
    assert torch.equal(noise.flatten(1), uniform_noise((5, 24), seed=1, step=2, rows=rows))
    assert torch.equal(noise.double(), uniform_noise((5, 2, 3, 4), seed=1, step=2, rows=rows, dtype=torch.float64))
    assert torch.equal(noise, uniform_noise((5, 2, 3, 4), seed=1, step=torch.tensor(2), rows=rows))


def test_every_key_matters():
    rows = torch.arange(4)
    draws = [uniform_noise((4, 50), seed=seed, step=step, rows=first + rows)
             for seed in (0, 1, 2**32) for step in (0, 1) for first in (0, 100, 2**32)]
    values = torch.cat(draws).flatten()
    assert len(values.unique()) > 0.999 * len(values)


def test_is_uniform():
    noise = uniform_noise((1000, 1000), seed=7, step=3, rows=torch.arange(1000)).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise, bins=100, min=0, max=1)
    chi_square = ((counts - 1e4).square() / 1e4).sum().item()
    assert 50 < chi_square < 170  # 99 degrees of freedom: 5 standard deviations either side
    assert abs(noise.mean().item() - 0.5) < 5 * (1 / 12) ** 0.5 / 1e3
    assert abs(noise.var().item() - 1 / 12) < 5 * (1 / 180) ** 0.5 / 1e3
    # Neither columns nor rows nor neighbouring elements are correlated: 5 standard deviations of 1 / sqrt(n).
    centred = (noise - 0.5) * 12**0.5
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1], centred[:, 4:] * centred[:, :-4]):
        assert abs(product.mean().item()) < 5 / product.numel() ** 0.5


def test_bad_arguments():
    rows = torch.arange(3)
    with pytest.raises(ValueError, match=r"uniform_noise: rows has shape \(3,\), expected \(4,\)"):
        uniform_noise((4, 2), seed=0, step=0, rows=rows)
    with pytest.raises(TypeError, match=r"uniform_noise: rows has dtype torch\.float32"):
        uniform_noise((3, 2), seed=0, step=0, rows=rows.float())
    with pytest.raises(TypeError, match="uniform_noise: rows is list"):
        uniform_noise((3, 2), seed=0, step=0, rows=[0, 1, 2])
    with pytest.raises(TypeError, match=r"uniform_noise: dtype is torch\.float16"):
        uniform_noise((3, 2), seed=0, step=0, rows=rows, dtype=torch.float16)
    with pytest.raises(TypeError, match="uniform_noise: seed is float, expected an int or an integer Tensor"):
        uniform_noise((3, 2), seed=0.5, step=0, rows=rows)
    with pytest.raises(TypeError, match=r"uniform_noise: step has dtype torch\.float32, expected an integer dtype"):
        uniform_noise((3, 2), seed=0, step=torch.tensor(1.0), rows=rows)
    with pytest.raises(ValueError, match=r"uniform_noise: seed has shape \(2,\), expected one element"):
        uniform_noise((3, 2), seed=torch.tensor([1, 2]), step=0, rows=rows)
