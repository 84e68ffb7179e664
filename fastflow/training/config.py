"""The configuration of a training run: every key known, every value checked. See `config_file` for its YAML file."""

from typing import Any, Literal

from pydantic import Field, model_validator

from fastflow.training.model_config import BOUNDS, ModelConfig
from fastflow.training.randomness import SEEDS
from fastflow.training.section import Section

POINTS = ("moons", "circles", "eight-gaussians", "pinwheel")  # drawn, not read


class DataConfig(Section):
    name: Literal["digits", "mnist", "fashion-mnist", "kmnist", "omniglot", "omniglot-small", "mnist-omniglot",
                  "mnist-omniglot-small", "svhn", "svhn-extra", "small-norb", "cifar10", "idx", "npz", "moons",
                  "circles", "eight-gaussians", "pinwheel", "hepmass", "miniboone", "ag-news", "yahoo", "table"]
    path: str | None = None  # npz, table: the file; others: the folder of the files, default: in $FASTFLOW_DATA
    test_path: str | None = None  # table: the file of the test rows
    label: str = "label"  # table: the column of the class
    standardize: bool = False  # vectors: columns of mean 0 and deviation 1, by the training rows
    levels: int | None = Field(None, ge=2, le=256)  # npz: the number of grey levels, default 256
    pca: int | None = Field(None, ge=1)  # images: that many whitened principal components, by the training images
    rows: int | None = Field(None, ge=2)  # points: training points, half as many test them; default 1000
    noise: float | None = Field(None, ge=0)  # moons, circles: default 0.05
    factor: float | None = Field(None, gt=0, lt=1)  # circles: the inner radius, default 0.4
    draw: int = Field(0, ge=0)  # points: the seed they are drawn with
    labels: int = Field(100, ge=0)  # labelled training rows, stratified by class
    label_seed: int | None = Field(None, ge=0)  # chooses them for every seed alike, which makes of seeds restarts
    split: str | None = None  # file of `write_split` with the rows to label and to monitor, for every seed the same
    monitor: int = Field(0, ge=0)  # other training rows that progress is measured on; never the test set
    hold_out: bool = True  # false: the monitored rows are trained on too, without labels, so progress is not held out

    @model_validator(mode="after")
    def _consistent(self):
        if self.path is None and self.name in (files := {"npz": "the .npz file", "table": "the file of training rows",
                                                         "idx": "the folder of the four IDX files"}):
            raise ValueError(f"data.path is missing, expected {files[self.name]}")
        if self.split is not None and self.label_seed is not None:
            raise ValueError(f"data.label_seed is {self.label_seed}, expected none: data.split says what is labelled")
        if self.name == "table" and self.test_path is None:
            raise ValueError("data.test_path is missing, expected the file of test rows")
        if self.name in ("digits", *POINTS) and self.path is not None:
            raise ValueError(f"data.path is {self.path!r}, expected none: {self.name} come with scikit-learn")
        if self.name != "npz" and self.levels is not None:
            raise ValueError(f"data.levels is {self.levels}, expected none: {self.name} has its own")
        for key, names in _OF_SOME.items():
            value, default = getattr(self, key), DataConfig.model_fields[key].default
            if value != default and self.name not in names:
                raise ValueError(f"data.{key} is {value!r}, expected none: it is of {', '.join(names)}")
        return self


_OF_SOME = {"test_path": ("table",), "label": ("table",), "standardize": ("table",), "rows": POINTS, "draw": POINTS,
            "noise": ("moons", "circles"), "factor": ("circles",)}


class SamplingConfig(Section):
    batch: int = Field(256, ge=2)
    labelled: float = Field(0.5, ge=0)  # total weight of the labelled rows, the unlabelled weigh 1


class AugmentationConfig(Section):
    """How training images may move, see `fastflow.data.Augmentation`; the defaults leave them as they are."""

    pad: int = Field(0, ge=0)
    flip: bool = False
    rotation: float = Field(0.0, ge=0, le=180)  # largest angle, degrees

    @property
    def moves(self) -> bool:
        return self != AugmentationConfig()


class ViewConfig(Section):
    """Standard deviations of how an image or a vector moves into its view, see `affine_views` and `noisy_views`."""

    rotation: float = Field(6.0, ge=0)  # degrees
    shear: float = Field(6.0, ge=0)  # degrees
    shift: float = Field(0.5, ge=0)  # pixels
    zoom: float = Field(0.05, ge=0)  # fraction
    noise: float = Field(0.1, ge=0)  # of vectors, in their units; all else is of images


class LossConfig(Section):
    """Of flows: the likelihood, where a labelled row weighs `labelled`, plus terms with these weights; see `loss.py`,
    `em.py` and `consistency.py`. Of M1 and M2: the bound, see `objectives.py`. TzK has nothing to set here."""

    labelled: float = Field(1.0, ge=0)
    classification: float = Field(0.0, ge=0)  # cross-entropy of labelled rows
    view: float = Field(0.0, ge=0)  # cross-entropy of the views of labelled rows
    pseudo: float = Field(0.0, ge=0)  # cross-entropy of the views of unlabelled rows with the class of the row itself,
    pseudo_threshold: float = Field(0.9, ge=0, lt=1)  # where that has more than this probability
    pseudo_start: int = Field(0, ge=0)  # steps before pseudo-labels weigh anything
    pseudo_ramp: int = Field(0, ge=0)  # steps in which their weight then grows
    views: ViewConfig = ViewConfig()
    consistency: float = Field(0.0, ge=0)  # of two augmentations of a row, for all rows: FlowGMM-cons
    consistency_kind: Literal["hard", "mse"] = "hard"
    consistency_threshold: float = Field(0.0, ge=0, lt=1)  # hard: rows whose class is no more probable count nothing
    consistency_ramp: int = Field(0, ge=0)  # steps in which its weight grows from the first step on
    em_steps: int = Field(1, ge=1)  # M-steps on one batch, or epochs, with the responsibilities of before the first
    em_refresh: Literal["batch", "epoch"] = "batch"  # when responsibilities are computed; batch with 1 step: plain SGD
    alpha: float = Field(0.1, ge=0)  # M2: a labelled row's cross-entropy weighs alpha rows / labelled
    weight_prior: bool = True  # M1, M2: weights are N(0, 1)

    @property
    def uses_views(self) -> bool:
        return self.view > 0 or self.pseudo > 0

    @property
    def uses_em(self) -> bool:
        return self.em_steps > 1 or self.em_refresh == "epoch"


class OptimizerConfig(Section):
    name: Literal["adamax", "adam", "adamw"] = "adamax"
    lr: float = Field(1e-3, gt=0)
    head_lr: float | None = Field(None, gt=0)  # of the class head, a learned mixture say; default lr
    weight_decay: float = Field(0.0, ge=0)  # adamax, adam: L2 in the gradient; adamw: decoupled
    decay_all: bool = False  # true: also act-norms, 1x1 mixes, embeddings and scales, as the reference code does
    clip: float | None = Field(None, gt=0)  # largest gradient norm
    ema: float | None = Field(None, gt=0, lt=1)  # decay of the averaged weights, which are then the model's


class ScheduleConfig(Section):
    name: Literal["constant", "linear", "hat", "cosine", "hold", "drops"] = "linear"
    warmup: int = Field(0, ge=0)  # steps of linear warm-up ("hat" and "cosine")


class Config(Section):
    """A whole run. `seed` is the first of `seeds` label seeds; each chooses labels and keys all else that is random."""

    data: DataConfig
    model: ModelConfig = Field(discriminator="kind")
    sampling: SamplingConfig = SamplingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
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
    pretrained: str | None = None  # scnf: a checkpoint of the public code to start from; m1m2: the run of its M1

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("model"), dict) and "kind" not in tree["model"]:
            return tree | {"model": {"kind": "scnf"} | tree["model"]}
        return tree

    @model_validator(mode="after")
    def _consistent(self):
        schedule, model = self.schedule, self.model
        if schedule.warmup and schedule.name not in ("hat", "cosine"):
            raise ValueError(f"schedule.warmup is {schedule.warmup}, expected 0 for {schedule.name}: "
                             "hat and cosine warm up")
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"seed + seeds is {self.seed} + {self.seeds}, expected at most {SEEDS}")
        self._loss_is_of_the_model()
        if model.kind == "m1" or (model.kind == "scnf" and model.head.kind == "normal"):
            loss = self.loss
            of_classes = {"data.labels": self.data.labels, "loss.classification": loss.classification,
                          "loss.view": loss.view, "loss.pseudo": loss.pseudo, "loss.consistency": loss.consistency,
                          "loss.em_steps - 1": loss.em_steps - 1}
            what = "m1" if model.kind == "m1" else "a model.head of kind normal"
            for key, value in of_classes.items():
                if value:
                    raise ValueError(f"{key} is {value}, expected 0: {what} has no classes")
        if model.kind in ("flowgmm", "m2", "m1m2") and not self.data.labels:
            raise ValueError(f"data.labels is 0, expected more: {model.kind} learns its classes from labels; m1 and a "
                             "model.head of kind normal learn without")
        if model.kind in BOUNDS and self.data.labels and not self.sampling.labelled:
            raise ValueError("sampling.labelled is 0.0, expected more: no labelled row would be drawn")
        if self.loss.uses_em and model.kind == "flowgmm" and model.trunk.kind == "real_nvp":
            raise ValueError("loss.em_steps or em_refresh is set, expected neither for a real_nvp trunk: its batch "
                             "normalisation makes of the E-step another function than that of the M-step")
        if model.kind == "m1m2" and self.pretrained is None:
            raise ValueError("pretrained is missing, expected the run of an m1: m1m2 is M2 on the latents of that")
        if model.kind not in ("scnf", "m1m2") and self.pretrained is not None:
            raise ValueError(f"pretrained is {self.pretrained!r}, expected none: {model.kind} starts from scratch")
        return self

    def _loss_is_of_the_model(self) -> None:
        """Raises ValueError where a key of `loss` is set that the model's objective would not read."""
        kind = self.model.kind
        used = set() if kind == "tzk" else {"weight_prior"} if kind == "m1" else _OF_BOUNDS if kind in BOUNDS else (
            set(LossConfig.model_fields) - _OF_BOUNDS)
        for key, field in LossConfig.model_fields.items():
            if key not in used and getattr(self.loss, key) != field.default:
                raise ValueError(f"loss.{key} is {getattr(self.loss, key)}, expected {field.default}: "
                                 f"{kind} has another objective")
        for key, of in _PART_OF.items():
            if getattr(self.loss, key) != LossConfig.model_fields[key].default and not getattr(self.loss, of):
                raise ValueError(f"loss.{key} is {getattr(self.loss, key)}, expected "
                                 f"{LossConfig.model_fields[key].default}: loss.{of} is 0")


_OF_BOUNDS = {"alpha", "weight_prior"}
_PART_OF = {"pseudo_threshold": "pseudo", "pseudo_start": "pseudo", "pseudo_ramp": "pseudo",
            "consistency_kind": "consistency", "consistency_threshold": "consistency",
            "consistency_ramp": "consistency"}
