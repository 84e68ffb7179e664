"""scikit-learn's classifiers, on M1's latents, or on pixels as the baseline of every system."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSIFIERS = ("knn", "linear_svm", "rbf_svm", "label_spreading")


def feature_classifier(kind: str, features: Tensor, labels: Tensor, **options):
    """A fitted scikit-learn classifier; its `predict(features.numpy())` gives labels.

    kind      "knn" (5 neighbours), "linear_svm", "rbf_svm", which see the labelled rows alone; or "label_spreading"
              (among 7 neighbours), which sees all. The paper's transductive SVM is not in scikit-learn
    features  [N, D] on any device
    labels    integers [N], -1 for unlabelled
    options   keywords of the scikit-learn class, in place of those

    Raises ValueError for an unknown kind, or where fewer than two classes have a label.
    """
    from sklearn.neighbors import KNeighborsClassifier  # part of the extra `train`, which a model can do without
    from sklearn.semi_supervised import LabelSpreading
    from sklearn.svm import SVC

    if kind not in CLASSIFIERS:
        raise ValueError(f"feature_classifier: kind is {kind!r}, expected one of {', '.join(CLASSIFIERS)}")
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"feature_classifier: features have shape {tuple(features.shape)} and labels "
                         f"{tuple(labels.shape)}, expected [N, D] and [N]")
    x, y = (value.detach().cpu().numpy() for value in (features.double(), labels))
    known = y >= 0
    if len(torch.unique(labels[labels >= 0])) < 2:
        raise ValueError("feature_classifier: labels name fewer than two classes, expected rows of two at least")
    if kind == "label_spreading":
        return LabelSpreading(**{"kernel": "knn", "n_neighbors": 7} | options).fit(x, y)
    if kind == "knn":
        return KNeighborsClassifier(**options).fit(x[known], y[known])
    return SVC(**{"kernel": kind.removesuffix("_svm")} | options).fit(x[known], y[known])
