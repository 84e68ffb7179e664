"""The configuration of a training run: one YAML file, every key known, every value checked."""

import difflib
import os
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fastflow.training.randomness import SEEDS


class Section(BaseModel):
    """A section refuses unknown keys and never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _countable(cls, value):
        if isinstance(value, int) and value > SEEDS:  # noise is keyed by 32 bits of seed and of step
            raise PydanticCustomError("too_large", f"Input should be at most {SEEDS}")
        return value


class DataConfig(Section):
    name: Literal["digits", "mnist", "fashion-mnist", "kmnist", "omniglot", "omniglot-small", "mnist-omniglot",
                  "mnist-omniglot-small", "svhn", "svhn-extra", "small-norb", "cifar10", "idx", "npz"]
    path: str | None = None  # npz: the file; others: the folder of the files, by default their own in $FASTFLOW_DATA
    levels: int | None = Field(None, ge=2, le=256)  # npz: the number of grey levels, default 256
    labels: int = Field(100, ge=0)  # labelled training images, stratified by class
    split: str | None = None  # file of `write_split` with the rows to label and to monitor, for every seed the same
    monitor: int = Field(0, ge=0)  # other training images that progress is measured on; never the test set
    hold_out: bool = True  # false: the monitored images are trained on too, without labels, so progress is not held out


class ConvTrunk(Section):
    """`fastflow.models.conv_trunk`; the defaults are the published MNIST trunk."""

    kind: Literal["conv"]
    scales: int = Field(3, ge=1)
    masked_steps: int = Field(3, ge=0)
    channel_steps: int = Field(2, ge=0)
    hidden: int = Field(64, ge=1)
    blocks: int = Field(4, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=1)  # of the logit
    reversible: bool = False  # less memory, more time; see `FlowSequential`


class VectorTrunk(Section):
    """`fastflow.models.vector_trunk`, for small images."""

    kind: Literal["vector"]
    scales: int = Field(2, ge=1)
    steps: int = Field(4, ge=1)
    hidden: int = Field(128, ge=1)
    blocks: int = Field(1, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    alpha: float = Field(0.05, gt=0, lt=1)
    reversible: bool = False


class FlowHead(Section):
    """`fastflow.models.conditional_flow`: SCNF-GLOW; the defaults are the published MNIST head."""

    kind: Literal["flow"]
    context_features: int | None = Field(None, ge=1)  # width of the class embedding, default the number of classes
    levels: int = Field(2, ge=1)
    steps: int = Field(4, ge=1)
    hidden: int = Field(256, ge=1)
    blocks: int = Field(4, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    threshold: float | None = Field(None, ge=0)  # backward leaves out responsibilities up to this; none: nothing


class GaussianHead(Section):
    """`fastflow.nn.GaussianClassHead`: SCNF-GMM."""

    kind: Literal["gaussian"]
    covariance: Literal["shared_diag", "class_diag", "isotropic", "shared_full", "class_full"] = "shared_diag"


class NormalHead(Section):
    """A diagonal normal: a flow without classes, for training without labels."""

    kind: Literal["normal"]


class ModelConfig(Section):
    """SCNF: a trunk, and a head on the latents of its last scale."""

    trunk: ConvTrunk | VectorTrunk = Field(discriminator="kind")
    head: FlowHead | GaussianHead | NormalHead = Field(discriminator="kind")
    prior: Literal["uniform", "empirical", "learned"] = "empirical"  # p(y); empirical: of the labelled images


class SamplingConfig(Section):
    batch: int = Field(256, ge=2)
    labelled: float = Field(0.5, ge=0)  # total weight of the labelled rows, the unlabelled weigh 1


class ViewConfig(Section):
    """Standard deviations of how an image moves into its view, see `affine_views`."""

    rotation: float = Field(6.0, ge=0)  # degrees
    shear: float = Field(6.0, ge=0)  # degrees
    shift: float = Field(0.5, ge=0)  # pixels
    zoom: float = Field(0.05, ge=0)  # fraction


class LossConfig(Section):
    """The likelihood, where a labelled row weighs `labelled`, plus class terms with these weights; see `loss.py`."""

    labelled: float = Field(1.0, ge=0)
    classification: float = Field(0.0, ge=0)  # cross-entropy of labelled rows
    view: float = Field(0.0, ge=0)  # cross-entropy of the views of labelled rows
    pseudo: float = Field(0.0, ge=0)  # cross-entropy of the views of unlabelled rows with the class of the row itself,
    pseudo_threshold: float = Field(0.9, ge=0, lt=1)  # where that has more than this probability
    pseudo_start: int = Field(0, ge=0)  # steps before pseudo-labels weigh anything
    pseudo_ramp: int = Field(0, ge=0)  # steps in which their weight then grows
    views: ViewConfig = ViewConfig()

    @property
    def uses_views(self) -> bool:
        return self.view > 0 or self.pseudo > 0


class OptimizerConfig(Section):
    name: Literal["adamax", "adamw"] = "adamax"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # adamax: L2 in the gradient; adamw: decoupled
    decay_all: bool = False  # true: also act-norms, 1x1 mixes, embeddings and scales, as the reference code does
    clip: float | None = Field(None, gt=0)  # largest gradient norm
    ema: float | None = Field(None, gt=0, lt=1)  # decay of the averaged weights, which are then the model's


class ScheduleConfig(Section):
    name: Literal["constant", "linear", "hat", "cosine"] = "linear"
    warmup: int = Field(0, ge=0)  # steps of linear warm-up ("hat" and "cosine")


class Config(Section):
    """A whole run. `seed` is the first of `seeds` label seeds; each chooses labels and keys all else that is random."""

    data: DataConfig
    model: ModelConfig
    sampling: SamplingConfig = SamplingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    steps: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1)
    log_every: int = Field(50, ge=1)
    evaluate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)  # step checkpoints kept beside the final one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pretrained: str | None = None  # a checkpoint of the public SCNF code to start from

    @model_validator(mode="after")
    def _consistent(self):
        data, schedule = self.data, self.schedule
        if data.name in ("npz", "idx") and data.path is None:
            what = "the .npz file" if data.name == "npz" else "the folder of the four IDX files"
            raise ValueError(f"data.path is missing, expected {what}")
        if data.name == "digits" and data.path is not None:
            raise ValueError(f"data.path is {data.path!r}, expected none: the digits come with scikit-learn")
        if data.name != "npz" and data.levels is not None:
            raise ValueError(f"data.levels is {data.levels}, expected none: {data.name} has its own")
        if schedule.warmup and schedule.name in ("constant", "linear"):
            raise ValueError(f"schedule.warmup is {schedule.warmup}, expected 0 for {schedule.name}: "
                             "hat and cosine warm up")
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"seed + seeds is {self.seed} + {self.seeds}, expected at most {SEEDS}")
        if self.model.head.kind == "normal":
            loss = self.loss
            of_classes = {"data.labels": self.data.labels, "loss.classification": loss.classification,
                          "loss.view": loss.view, "loss.pseudo": loss.pseudo}
            for key, value in of_classes.items():
                if value:
                    raise ValueError(f"{key} is {value}, expected 0: a model.head of kind normal has no classes")
        return self


_UNIONS = ("trunk", "head")  # pydantic puts the kind that was chosen into the path of what is wrong inside


def load_config(path: str | os.PathLike, settings: list[str] | None = None) -> Config:
    """Reads a YAML file and applies `settings` ("optimizer.lr=1e-3", values in YAML) over it.

    Raises FileNotFoundError or ValueError: one line that names the file, the key, what came and what was expected.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {_flat(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of sections (data, model, steps, ...), got {type(tree).__name__}")
    for setting in settings or []:
        _apply(tree, setting)
    return parse_config(tree, str(path))


def parse_config(tree: dict, source: str) -> Config:
    """The checked Config of a nested dict; errors begin with `source`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {_describe(error)}") from None


def dump_config(config: Config) -> str:
    """The YAML text that load_config reads back to the same Config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _apply(tree: dict, setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {setting}: expected key=value, for instance optimizer.lr=1e-3")
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"--set {setting}: {section} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--set {setting}: not a YAML value: {_flat(error)}") from error


def _describe(error: ValidationError) -> str:
    first, *others = error.errors()
    path = first["loc"]
    location = [part for i, part in enumerate(path) if i == 0 or path[i - 1] not in _UNIONS]
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        text = f"unknown key {key}{_suggest(location)}"
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "union_tag_not_found":
        text = f"{key}.kind is missing"
    elif first["type"] == "union_tag_invalid":
        text = f"{key}.kind is {first['ctx']['tag']!r}, expected {first['ctx']['expected_tags']}"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(others)} more)" if others else "")


def _suggest(location: list) -> str:
    keys = _keys(Config)
    wrong = ".".join(map(str, location))
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong section
        near = [key for key in keys if key.rsplit(".", 1)[-1] == location[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for kind in _members(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys


def _members(annotation: Any) -> tuple:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
