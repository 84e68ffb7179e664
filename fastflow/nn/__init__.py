"""Modules: invertible layers, the networks that condition them, class heads and base distributions."""

from fastflow.nn.act_norm import ActNorm
from fastflow.nn.bijection import Bijection
from fastflow.nn.channel_mix import ChannelMix
from fastflow.nn.class_prior import ClassPrior
from fastflow.nn.conditioners import ConvResidualNet, ResidualMLP, WeightNormResNet
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.density_mlp import BernoulliMLP, GaussianMLP, SoftplusMLP
from fastflow.nn.dequantize import Dequantize
from fastflow.nn.dequantize_logit import DequantizeLogit
from fastflow.nn.diagonal_normal import DiagonalNormal
from fastflow.nn.elementwise_affine import ElementwiseAffine
from fastflow.nn.factor_out import FactorOut
from fastflow.nn.flatten import Flatten
from fastflow.nn.flow_class_head import FlowClassHead
from fastflow.nn.flow_sequential import FlowSequential
from fastflow.nn.gaussian_class_head import GaussianClassHead
from fastflow.nn.logit import Logit
from fastflow.nn.noise_stream import NoiseStream
from fastflow.nn.permutation import Permutation
from fastflow.nn.split import Split
from fastflow.nn.squeeze import Squeeze
from fastflow.nn.sym_log import SymLog

__all__ = [
    "ActNorm", "AffineCoupling", "BernoulliMLP", "Bijection", "ChannelMix", "ClassPrior", "ConvResidualNet",
    "Dequantize", "DequantizeLogit", "DiagonalNormal", "ElementwiseAffine", "FactorOut", "Flatten",
    "FlowClassHead", "FlowSequential", "GaussianClassHead", "GaussianMLP", "Logit", "NoiseStream", "Permutation",
    "ResidualMLP", "SoftplusMLP", "Split", "Squeeze", "SymLog", "WeightNormResNet",
]
