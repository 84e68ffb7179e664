"""AG-News and Yahoo Answers as BERT embeddings, in the files that FlowGMM's public code reads."""

import os
from dataclasses import replace

from fastflow.data.official import Official
from fastflow.data.tables import read_table
from fastflow.data.vectors import VectorData

_URL = "the links in https://github.com/izmailovpavel/flowgmm/blob/public/flow_ssl/data/nlp_datasets.py"
AG_NEWS = Official("ag-news", _URL, dict.fromkeys(("ag_news_train.npz", "ag_news_test.npz")), classes=4, shape=(768,),
                   train=120_000, test=7_600)
YAHOO = Official("yahoo", _URL, dict.fromkeys(("yahoo_train.npz", "yahoo_test.npz")), classes=10, shape=(768,),
                 train=None, test=None)
YAHOO_TEST = 10_000  # FlowGMM tests on the first ones


def ag_news(folder: str | os.PathLike | None = None) -> VectorData:
    """News in 4 classes: 120,000 training and 7,600 test embeddings float32 [N, 768], as stored, not standardised.

    `folder` None means `$FASTFLOW_DATA/ag-news`. No checksum is published; counts are checked. Raises
    FileNotFoundError, TypeError or ValueError naming the file. Source: Zhang et al. 2015; Izmailov et al. 2020.
    """
    return _load(AG_NEWS, folder)


def yahoo(folder: str | os.PathLike | None = None) -> VectorData:
    """Questions in 10 classes: embeddings float32 [N, 768] as stored, the first 10,000 of the test file for testing.

    `folder` None means `$FASTFLOW_DATA/yahoo`. No checksum or count is published; width and labels are checked. Raises
    and source as `ag_news`.
    """
    data = _load(YAHOO, folder)
    return replace(data, test_features=data.test_features[:YAHOO_TEST], test_labels=data.test_labels[:YAHOO_TEST])


def _load(official: Official, folder: str | os.PathLike | None) -> VectorData:
    folder, arrays = official.folder(folder), {}
    for part, name in zip(("train", "test"), official.files, strict=True):
        path = official.find(folder, name)
        features, labels = read_table(path)
        official.require_rows(path, len(features), part)
        official.require_shape(path, tuple(features.shape[1:]))
        arrays |= {f"{part}_features": features, f"{part}_labels": labels}
    return VectorData(official.name, official.classes, **arrays)
