"""From a configuration to data, device and model."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastflow import _backend
from fastflow.data import DATA_SETS, PCA, ImageData, Split, VectorData, idx, npz, read_split, split_rows, tables
from fastflow.data import standardize as standardized
from fastflow.models import M1, M1M2, M2, SCNF, FlowGMM, TzK, class_means, read_reference
from fastflow.models.class_bound import ClassBound
from fastflow.models.class_flow import ClassFlow
from fastflow.models.trunks import real_nvp_trunk, tabular_trunk
from fastflow.models.tzk_flows import tzk_trunk
from fastflow.training.config import POINTS, DataConfig
from fastflow.training.model_config import FlowGmmConfig, ModelConfig, ScnfConfig, TzkConfig
from fastflow.training.state import load_weights

Model = ClassFlow | ClassBound
Data = ImageData | VectorData


def load_data(config: DataConfig) -> Data:
    """The data of a configuration; raises what the loaders raise."""
    if config.name == "npz":
        data = npz(config.path, config.levels or 256)
    elif config.name == "idx":
        data = idx(config.path)
    elif config.name == "table":
        data = tables(config.path, config.test_path, config.label)
        data = standardized(data) if config.standardize else data
    elif config.name in POINTS:
        sizes = {} if config.rows is None else {"train": config.rows, "test": config.rows // 2}
        shape = {key: getattr(config, key) for key in ("noise", "factor") if getattr(config, key) is not None}
        data = DATA_SETS[config.name].load(seed=config.draw, **sizes, **shape)
    else:
        entry = DATA_SETS[config.name]
        data = entry.load(config.path) if entry.official.files else entry.load()
    return data if config.pca is None else _components(data, config.pca)


def _components(data: Data, components: int) -> VectorData:
    if not isinstance(data, ImageData):
        raise ValueError(f"data.pca is {components}, expected none: {data.name} has no images")
    pca = PCA.fit(data.train_images, components)
    parts = {f"{part}_features": torch.cat([pca(rows) for rows in getattr(data, f"{part}_images").split(4096)])
             for part in ("train", "test")}
    return VectorData(f"{data.name} pca {components}", data.classes, train_labels=data.train_labels,
                      test_labels=data.test_labels, origin=data.describe()["sha256"], **parts)


def split(data: Data, config: DataConfig, seed: int) -> Split:
    """The rows that `data.label_seed`, else `seed`, chooses, or those of the file `data.split`.

    Raises ValueError where the file is of other data, or says something else than data.labels, monitor and hold_out.
    """
    if config.split is not None:
        return _read_split(data, config)
    seed = seed if config.label_seed is None else config.label_seed
    labels = data.train_labels.numpy()
    return split_rows(labels, data.classes, config.labels, seed, config.monitor, config.hold_out)


def _read_split(data: Data, config: DataConfig) -> Split:
    chosen = read_split(config.split, data)
    said = {"labels": len(chosen.labelled), "monitor": len(chosen.monitor)}
    if len(chosen.monitor):
        said["hold_out"] = not np.isin(chosen.monitor, chosen.unlabelled).any()
    for key, value in said.items():
        if getattr(config, key) != value:
            raise ValueError(f"data.{key} is {getattr(config, key)}, expected {value} as in {config.split}")
    return chosen


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for.

    Raises ValueError for a CUDA that is not there, RuntimeError for an instruction set that the CPU has not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch sees no CUDA device; use device=auto or device=cpu")
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    _backend.require_instruction_set()
    return torch.device("cpu")


def build_model(config: ModelConfig, about: dict, units: Tensor | None = None) -> Model:
    """The untrained model of data that `describe` themselves so. `units`: of an m1m2, see `M1M2`.

    Raises ValueError if data and architecture do not fit.
    """
    shape, levels, classes = tuple(about["shape"]), about.get("levels", 1), about["classes"]
    if config.kind == "scnf":
        return _scnf(config, shape, levels, classes)
    if config.kind == "flowgmm":
        return _flowgmm(config, shape, levels, classes)
    if config.kind == "tzk":
        return _tzk(config, about, shape, levels, classes)
    likelihood = config.m1.likelihood if config.kind == "m1m2" else config.likelihood
    if levels == 1 and likelihood == "bernoulli":
        raise ValueError("model.likelihood is bernoulli, expected gaussian: the data are vectors")
    sizes = config.model_dump(exclude={"kind", "m1", "threshold"})
    if config.kind == "m1":
        return M1(shape, **sizes)
    if config.kind == "m2":
        return M2(shape, classes, **sizes)
    return M1M2.build(M1(shape, **config.m1.model_dump(exclude={"kind"})), units, classes, **sizes)


def _scnf(config: ScnfConfig, shape: tuple[int, ...], levels: int, classes: int) -> SCNF:
    trunk = config.trunk.model_dump()
    if config.trunk.kind == "conv":
        _require(config.trunk.kind, shape, 3)
    else:
        trunk["alpha"] = _alpha(config.trunk.alpha, levels)
    return SCNF.build(shape, levels, classes, trunk=trunk, head=config.head.model_dump(), prior=config.prior)


def _flowgmm(config: FlowGmmConfig, shape: tuple[int, ...], levels: int, classes: int) -> FlowGMM:
    options = config.trunk.model_dump(exclude={"kind"})
    if config.trunk.kind == "real_nvp":
        _require("real_nvp", shape, 3)
        trunk = real_nvp_trunk(shape, **options)
    else:
        _require("tabular", shape, 1)
        trunk = tabular_trunk(*shape, **options)
    return FlowGMM(trunk, _means(config, classes, int(np.prod(shape))), levels, scale=config.scale, prior=config.prior,
                   learn_means=config.learn_means, learn_scales=config.learn_scales)


def _means(config: FlowGmmConfig, classes: int, features: int) -> Tensor:
    """The means, or random ones until `start_model` places those that need data."""
    means = config.means
    for kind, needed, found in (("antipodal", 2, classes), ("circle", 2, features)):
        if means.kind == kind and found != needed:
            what = "classes" if kind == "antipodal" else "features"
            raise ValueError(f"model.means.kind is {kind}, expected another: it is for {needed} {what}, not {found}")
    if means.kind == "antipodal":
        return class_means.antipodal_means(features, means.radius)
    if means.kind == "circle":
        return class_means.circle_means(classes, means.radius, means.start)
    if means.kind in ("constant", "block"):
        return getattr(class_means, f"{means.kind}_means")(classes, features, means.radius)
    return class_means.random_means(classes, features, means.radius)


def _tzk(config: TzkConfig, about: dict, shape: tuple[int, ...], levels: int, classes: int) -> TzK:
    trunk = tzk_trunk(shape, steps=config.steps, tile=config.tile, alpha=_alpha(config.alpha, levels),
                      reversible=config.reversible)
    return TzK(trunk, levels, [f"class_{label}" for label in range(classes)], groups=about.get("groups", ()),
               classless=about.get("classless", ()), tile=config.tile, steps=config.knowledge_steps,
               **config.model_dump(include={"style", "hidden", "penalty", "positive_weight"}))


def _alpha(alpha: float | None, levels: int) -> float | None:
    if levels == 1 and alpha is not None:
        raise ValueError(f"alpha of the logit is {alpha}, expected none: the data are vectors, not images")
    return 0.05 if levels > 1 and alpha is None else alpha


def _require(kind: str, shape: tuple[int, ...], dims: int) -> None:
    if len(shape) != dims:
        what, other = ("images", "vectors") if dims == 3 else ("vectors", "images")
        raise ValueError(f"model.trunk.kind is {kind}, a flow of {what}, but the data are {other} of shape {shape}")


def load_pretrained(model: SCNF, path: str | Path) -> None:
    """Takes the weights of a checkpoint of the public SCNF code (`model.torch`), which must be of this architecture."""
    reference = SCNF.from_reference(read_reference(path), model.head.prior.kind)
    load_weights(model, reference.state_dict(), path)
