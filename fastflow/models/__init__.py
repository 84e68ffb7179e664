"""Whole models of data and classes, and the trunks that they stand on."""

from fastflow.models.class_bound import ClassBound, class_bound, classification_weight
from fastflow.models.class_flow import ClassFlow
from fastflow.models.feature_classifiers import feature_classifier
from fastflow.models.flowgmm import FlowGMM
from fastflow.models.flowgmm_checkpoint import read_flowgmm
from fastflow.models.knowledge import Knowledge
from fastflow.models.m1 import M1
from fastflow.models.m1m2 import M1M2
from fastflow.models.m2 import M2, style_plane
from fastflow.models.reference_checkpoint import read_reference
from fastflow.models.scnf import SCNF
from fastflow.models.trunks import conditional_flow, conv_trunk, real_nvp_trunk, tabular_trunk, vector_trunk
from fastflow.models.tzk import TzK
from fastflow.models.tzk_flows import tzk_trunk

__all__ = [
    "M1", "M1M2", "M2", "SCNF", "ClassBound", "ClassFlow", "FlowGMM", "Knowledge", "TzK", "class_bound",
    "classification_weight", "conditional_flow", "conv_trunk", "feature_classifier", "read_flowgmm",
    "read_reference", "real_nvp_trunk", "style_plane", "tabular_trunk", "tzk_trunk", "vector_trunk",
]
