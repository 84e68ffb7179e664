"""The `model` section: one class a system, one a trunk, one a head, told apart by their `kind`."""

from typing import Annotated, Literal

from pydantic import Field

from fastflow.training.randomness import SEEDS
from fastflow.training.section import Section

Prior = Literal["uniform", "empirical", "learned"]
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=SEEDS)], ...], Field(min_length=1)]


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
    """`fastflow.models.vector_trunk`, for small images and for vectors."""

    kind: Literal["vector"]
    scales: int = Field(2, ge=1)
    steps: int = Field(4, ge=0)  # 0: no layer with parameters, for a head on all latents: a fully conditional flow
    hidden: int = Field(128, ge=1)
    blocks: int = Field(1, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    alpha: float | None = Field(None, gt=0, lt=1)  # of the logit; default 0.05 of images, vectors have no logit
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


class ScnfConfig(Section):
    """`fastflow.models.SCNF`: a trunk, and a head on the latents of its last scale."""

    kind: Literal["scnf"]
    trunk: ConvTrunk | VectorTrunk = Field(discriminator="kind")
    head: FlowHead | GaussianHead | NormalHead = Field(discriminator="kind")
    prior: Prior = "empirical"  # p(y); empirical: of the labelled rows


class RealNvpTrunk(Section):
    """`fastflow.models.real_nvp_trunk`; the defaults are FlowGMM's published net for images."""

    kind: Literal["real_nvp"]
    scales: int = Field(2, ge=1)
    hidden: int = Field(64, ge=1)
    blocks: int = Field(8, ge=0)
    doubling: bool = True
    alpha: float = Field(0.1, gt=0, lt=1)
    reversible: bool = False


class TabularTrunk(Section):
    """`fastflow.models.tabular_trunk`; the defaults are FlowGMM's published net for UCI data."""

    kind: Literal["tabular"]
    couplings: int = Field(10, ge=1)
    hidden: int = Field(256, ge=1)
    layers: int = Field(1, ge=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    reversible: bool = False


class MeansConfig(Section):
    """Where the class means start: `fastflow.models.class_means`, or from data, see `FlowGMM.place_means`."""

    kind: Literal["random", "antipodal", "circle", "constant", "block", "data", "latents", "latent_of_mean", "rows"] = (
        "random")
    radius: float = Field(1.0, gt=0)  # antipodal: their norm
    start: float = 0.0  # circle: angle of the first, radians


class FlowGmmConfig(Section):
    """`fastflow.models.FlowGMM`."""

    kind: Literal["flowgmm"]
    trunk: RealNvpTrunk | TabularTrunk = Field(discriminator="kind")
    means: MeansConfig = MeansConfig()
    scale: float = Field(1.0, gt=0)  # standard deviation of every class
    learn_means: bool = False
    learn_scales: bool = False
    prior: Prior = "uniform"


class M1Config(Section):
    """`fastflow.models.M1`; the defaults are the paper's for MNIST."""

    kind: Literal["m1"] = "m1"
    latent: int = Field(50, ge=1)
    hidden: Widths = (600, 600)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    init_std: float | None = Field(0.001, gt=0)  # of the weights; none: as the authors' code has it


class M2Config(Section):
    """`fastflow.models.M2`; the defaults are the paper's for MNIST."""

    kind: Literal["m2"]
    latent: int = Field(50, ge=1)
    hidden: Widths = (500,)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    prior: Literal["uniform", "learned"] = "uniform"
    init_std: float | None = Field(0.001, gt=0)


class M1M2Config(Section):
    """`fastflow.models.M1M2`: `m1` as it was trained, in the run that `pretrained` names, and M2 on its latents."""

    kind: Literal["m1m2"]
    m1: M1Config = M1Config()
    threshold: float = Field(0.1, ge=0)  # latents of M1 whose mean varies no more are left to their prior
    latent: int = Field(50, ge=1)
    hidden: Widths = (500,)  # the paper: 300 for 100 labels
    prior: Literal["uniform", "learned"] = "uniform"
    init_std: float | None = Field(0.001, gt=0)


class TzkConfig(Section):
    """`fastflow.models.TzK`: a knowledge type for every class and, where the data have them, every group."""

    kind: Literal["tzk"]
    steps: int = Field(10, ge=1)
    tile: int = Field(16, ge=4)  # side squared; 64 and more mix all pixels of 32 x 32
    alpha: float | None = Field(None, gt=0, lt=1)  # of the logit; default 0.05 of images, vectors have none
    reversible: bool = False
    style: int = Field(2, ge=1)  # c, dimensions of C
    hidden: int = Field(70, ge=1)  # of the regressors
    knowledge_steps: int = Field(4, ge=1)  # of the two conditional flows of a type
    penalty: float = Field(0.25, ge=0)  # lambda; see `Knowledge`
    positive_weight: float = Field(1.0, gt=0)  # of present types in the discriminators


ModelConfig = ScnfConfig | FlowGmmConfig | M1Config | M2Config | M1M2Config | TzkConfig
BOUNDS = ("m1", "m2", "m1m2")  # kinds that are a `ClassBound`
