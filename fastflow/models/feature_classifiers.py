"""scikit-learn's classifiers, on M1's latents, or on pixels as the baseline of every system."""

from __future__ import annotations

from torch import Tensor

from fastflow.ops._checks import check_finite

CLASSIFIERS = ("knn", "linear_svm", "rbf_svm", "label_spreading")


def feature_classifier(kind: str, features: Tensor, labels: Tensor, **options):
    """A fitted scikit-learn classifier; its `predict(features.numpy())` gives labels.

    kind      "knn" (5 neighbours), "linear_svm", "rbf_svm", which see the labelled rows alone; or "label_spreading"
              (among 7 neighbours), which sees all. The paper's transductive SVM is not in scikit-learn
    features  [N, D] on any device
    labels    integers [N], -1 for unlabelled
    options   keywords of the scikit-learn class, in place of those

    Raises ValueError for an unknown kind, numbers that are not finite, fewer than two classes with a label, or fewer
    rows than neighbours.
    """
    from sklearn.neighbors import KNeighborsClassifier  # part of the extra `train`, which a model can do without
    from sklearn.semi_supervised import LabelSpreading
    from sklearn.svm import SVC

    op = "feature_classifier"
    if kind not in CLASSIFIERS:
        raise ValueError(f"{op}: kind is {kind!r}, expected one of {', '.join(CLASSIFIERS)}")
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"{op}: features have shape {tuple(features.shape)} and labels {tuple(labels.shape)}, "
                         "expected [N, D] and [N]")
    features, labels = features.detach().cpu().double(), labels.cpu()
    check_finite(op, features=features)
    if len(labels[labels >= 0].unique()) < 2:
        raise ValueError(f"{op}: labels name fewer than two classes, expected rows of two at least")
    make, lowest, defaults = {
        "knn": (KNeighborsClassifier, 0, {"n_neighbors": 5}),
        "linear_svm": (SVC, 0, {"kernel": "linear"}),
        "rbf_svm": (SVC, 0, {"kernel": "rbf"}),
        "label_spreading": (LabelSpreading, -1, {"kernel": "knn", "n_neighbors": 7}),
    }[kind]
    seen, options = labels >= lowest, defaults | options
    if options.get("kernel", "knn") == "knn" and options["n_neighbors"] > seen.sum():
        raise ValueError(f"{op}: {kind} has {int(seen.sum())} rows, expected at least n_neighbors, "
                         f"{options['n_neighbors']}; give fewer")
    return make(**options).fit(features[seen].numpy(), labels[seen].numpy())
