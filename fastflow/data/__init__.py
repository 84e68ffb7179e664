"""Data sets as integer grey levels, and the choice of labelled rows."""

from fastflow.data.arrays import npz
from fastflow.data.digits import digits
from fastflow.data.idx import mnist, read_idx
from fastflow.data.images import ImageData
from fastflow.data.pca import PCA
from fastflow.data.split import Split, split_rows

__all__ = ["PCA", "ImageData", "Split", "digits", "mnist", "npz", "read_idx", "split_rows"]
