"""Whole models of data and classes, and the trunks that they stand on."""

from fastflow.models.class_flow import ClassFlow
from fastflow.models.flowgmm import FlowGMM
from fastflow.models.flowgmm_checkpoint import read_flowgmm
from fastflow.models.reference_checkpoint import read_reference
from fastflow.models.scnf import SCNF
from fastflow.models.trunks import conditional_flow, conv_trunk, real_nvp_trunk, tabular_trunk, vector_trunk

__all__ = [
    "SCNF", "ClassFlow", "FlowGMM", "conditional_flow", "conv_trunk", "read_flowgmm", "read_reference",
    "real_nvp_trunk", "tabular_trunk", "vector_trunk",
]
