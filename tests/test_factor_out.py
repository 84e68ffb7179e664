"""Factor-out: how many channels leave, inverse, refusals."""

import pytest
import torch

from fastflow.ops import factor_out, factor_out_inverse


@pytest.mark.parametrize(("channels", "leaving"), [(3, 2), (4, 2), (6, 4), (8, 4), (98, 50), (196, 98)])
def test_half_rounded_up_to_even_leaves(channels, leaving):
    x = torch.randn(2, channels, 3, 2)
    aux, rest = factor_out(x)
    assert torch.equal(aux, x[:, :leaving].reshape(2, -1))
    assert torch.equal(rest, x[:, leaving:])


@pytest.mark.parametrize("shape", [(3, 4), (2, 6, 7, 7), (0, 4, 2, 2), (1, 3, 5)], ids=str)
def test_inverts(shape):
    x = torch.randn(shape)
    assert torch.equal(factor_out_inverse(*factor_out(x)), x)


@pytest.mark.parametrize("channels", [1, 2])
def test_leaves_nothing(channels):
    with pytest.raises(ValueError, match=rf"factor_out: x has {channels} channel\(s\).* at least 3 channels"):
        factor_out(torch.randn(2, channels, 4, 4))


def test_bad_parts():
    with pytest.raises(ValueError, match=r"factor_out_inverse: aux has shape \(2, 7\), expected what factor_out gave"):
        factor_out_inverse(torch.zeros(2, 7), torch.zeros(2, 2, 2, 2))
    with pytest.raises(ValueError, match="factor_out_inverse: aux has shape"):
        factor_out_inverse(torch.zeros(3, 8), torch.zeros(2, 2, 2, 2))
    with pytest.raises(TypeError, match="factor_out: x is int"):
        factor_out(3)
