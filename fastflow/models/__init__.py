"""Whole models of data and classes."""

from fastflow.models.architectures import conditional_flow, conv_trunk, vector_trunk
from fastflow.models.class_flow import ClassFlow
from fastflow.models.reference_checkpoint import read_reference
from fastflow.models.scnf import SCNF

__all__ = ["SCNF", "ClassFlow", "conditional_flow", "conv_trunk", "read_reference", "vector_trunk"]
