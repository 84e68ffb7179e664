"""Modules: invertible layers, the networks that condition them, class heads and base distributions."""

from fastflow.nn.act_norm import ActNorm
from fastflow.nn.bijection import Bijection
from fastflow.nn.channel_mix import ChannelMix
from fastflow.nn.conditioners import ConvResidualNet, ResidualMLP
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.dequantize import Dequantize
from fastflow.nn.factor_out import FactorOut
from fastflow.nn.flatten import Flatten
from fastflow.nn.flow_sequential import FlowSequential
from fastflow.nn.logit import Logit
from fastflow.nn.split import Split
from fastflow.nn.squeeze import Squeeze

__all__ = [
    "ActNorm", "AffineCoupling", "Bijection", "ChannelMix", "ConvResidualNet", "Dequantize", "FactorOut", "Flatten",
    "FlowSequential", "Logit", "ResidualMLP", "Split", "Squeeze",
]
