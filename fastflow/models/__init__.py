"""Whole models of data and classes."""

from fastflow.models.architectures import conditional_flow, conv_trunk, vector_trunk
from fastflow.models.class_flow import ClassFlow
from fastflow.models.knowledge import Knowledge
from fastflow.models.reference_checkpoint import read_reference
from fastflow.models.scnf import SCNF
from fastflow.models.tzk import TzK
from fastflow.models.tzk_flows import tzk_trunk

__all__ = [
    "SCNF", "ClassFlow", "Knowledge", "TzK", "conditional_flow", "conv_trunk", "read_reference", "tzk_trunk",
    "vector_trunk",
]
