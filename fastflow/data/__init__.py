"""Data sets as tensors: images in grey levels, vectors; the choice of labelled rows; augmentation."""

from fastflow.data.arrays import npz
from fastflow.data.augment import Augmentation, augment
from fastflow.data.catalogue import DATA_SETS, load
from fastflow.data.cifar10 import cifar10
from fastflow.data.digits import digits
from fastflow.data.idx import fashion_mnist, idx, kmnist, mnist, read_idx
from fastflow.data.images import ImageData
from fastflow.data.mnist_omniglot import mnist_omniglot, mnist_omniglot_small
from fastflow.data.norb import small_norb
from fastflow.data.omniglot import omniglot, omniglot_small
from fastflow.data.pca import PCA
from fastflow.data.split import Split, split_rows
from fastflow.data.split_file import read_split, write_split
from fastflow.data.svhn import svhn, svhn_extra
from fastflow.data.tables import read_table, tables
from fastflow.data.text import ag_news, yahoo
from fastflow.data.toys import circles, eight_gaussians, moons, pinwheel
from fastflow.data.uci import hepmass, miniboone
from fastflow.data.vectors import VectorData, standardize

__all__ = [
    "DATA_SETS", "PCA", "Augmentation", "ImageData", "Split", "VectorData", "ag_news", "augment", "cifar10",
    "circles", "digits", "eight_gaussians", "fashion_mnist", "hepmass", "idx", "kmnist", "load", "miniboone", "mnist",
    "mnist_omniglot", "mnist_omniglot_small", "moons", "npz", "omniglot", "omniglot_small", "pinwheel", "read_idx",
    "read_split", "read_table", "small_norb", "split_rows", "standardize", "svhn", "svhn_extra", "tables",
    "write_split", "yahoo",
]
