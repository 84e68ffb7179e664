"""FrEIA: what its couplings ask of their input and of their subnets."""

import torch
from torch import Tensor, nn

from fastflow.fusion.couplings import conditioned


def checked(block: nn.Module, x: Tensor, channels: int) -> Tensor:
    """x, if it has this many channels; raises RuntimeError as torch.split does."""
    if x.shape[1] != channels:
        raise RuntimeError(f"{block._get_name()}: x has {x.shape[1]} channels, expected {channels}")
    return x


def asked(subnet: nn.Module, given: Tensor, conditions: tuple | list) -> Tensor:
    """What the subnet makes of the passive channels and the conditions behind them."""
    return subnet(torch.cat([given, *conditions], 1)) if conditions else conditioned(subnet, given)
