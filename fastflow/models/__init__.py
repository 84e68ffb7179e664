"""Whole models of data and classes."""

from fastflow.models.architectures import conditional_flow, conv_trunk, vector_trunk
from fastflow.models.class_bound import ClassBound, class_bound, classification_weight
from fastflow.models.class_flow import ClassFlow
from fastflow.models.feature_classifiers import feature_classifier
from fastflow.models.m1 import M1
from fastflow.models.m1m2 import M1M2
from fastflow.models.m2 import M2, style_plane
from fastflow.models.reference_checkpoint import read_reference
from fastflow.models.scnf import SCNF

__all__ = [
    "M1", "M1M2", "M2", "SCNF", "ClassBound", "ClassFlow", "class_bound", "classification_weight", "conditional_flow",
    "conv_trunk", "feature_classifier", "read_reference", "style_plane", "vector_trunk",
]
