"""FlowGMM: a flow whose latents are a mixture of Gaussians, one a class."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastflow.models import flowgmm_checkpoint
from fastflow.models.calibration import calibrated_scale
from fastflow.models.class_flow import ClassFlow
from fastflow.models.class_means import antipodal_means, circle_means, class_averages, random_means
from fastflow.models.trunks import real_nvp_trunk, tabular_trunk
from fastflow.nn import Dequantize, FlowSequential, GaussianClassHead
from fastflow.ops._checks import check_labels

MEANS = ("data", "latents", "latent_of_mean", "rows")


class FlowGMM(ClassFlow):
    """p(x, y) with z = f(x), p(z | y = k) = N(means_k, scale_k^2 I): log_base = log|det f|, G[k] = log p(z, y = k).

    trunk        flow f of data [B, *shape] to latents of D features in all; see `real_nvp_trunk`, `tabular_trunk`
    means        [K, D]; see fastflow.models.class_means, or place them by `place_means`
    levels       grey levels of images; 1 for continuous data, which is taken as it is
    scale        standard deviation of every class at first
    learn_means, learn_scales   whether training moves them; by default the mixture is fixed
    prior        p(y), see `ClassPrior`

    A trunk with batch normalisation gives densities in evaluation; in training a row's depends on its batch.
    Raises ValueError where means and trunk do not fit, or for a scale that is not positive.
    Source: Izmailov et al. 2020, "Semi-supervised learning with normalizing flows", arXiv 1912.13025.
    """

    def __init__(self, trunk: FlowSequential, means: Tensor, levels: int = 1, *, scale: float = 1.0,
                 learn_means: bool = False, learn_scales: bool = False,
                 prior: str | Sequence[float] | Tensor = "uniform") -> None:
        super().__init__()
        self.shape = trunk.shape
        self.features = math.prod(trunk.shape)
        if means.dim() != 2 or means.shape[1] != self.features:
            raise ValueError(f"FlowGMM: means has shape {tuple(means.shape)}, expected (classes, {self.features}), as "
                             "many features as the trunk has")
        self.classes, self.levels = len(means), levels
        self.dequantize = None if levels == 1 else Dequantize(levels)
        self.trunk = trunk
        self.head = GaussianClassHead(self.features, self.classes, "isotropic", means, prior)
        self.head.means.requires_grad_(learn_means)
        self.head.rho.requires_grad_(learn_scales)
        self.set_scale(scale)

    @classmethod
    def image(cls, image: Sequence[int], levels: int, classes: int, *, radius: float = 1.0,
              generator: torch.Generator | None = None, trunk: Mapping | None = None, **options) -> FlowGMM:
        """FlowGMM on images (C, H, W), means radius N(0, I). By default the published net for MNIST, CIFAR-10 and SVHN.

        trunk    keywords of `real_nvp_trunk`
        options  keywords of FlowGMM
        """
        means = random_means(classes, math.prod(image), radius, generator)
        return cls(real_nvp_trunk(image, **trunk or {}), means, levels, **options)

    @classmethod
    def mnist(cls, **options) -> FlowGMM:
        """The public code's lighter net for 28 x 28, `RealNVPMNIST`, a quarter of the published runs' cost.

        options are keywords of `image`.
        """
        light = {"scales": 3, "blocks": 4, "doubling": False}
        return cls.image((1, 28, 28), 256, 10, **{"trunk": light} | options)

    @classmethod
    def tabular(cls, features: int, classes: int, *, generator: torch.Generator | None = None,
                trunk: Mapping | None = None, **options) -> FlowGMM:
        """FlowGMM on vectors: two classes at +-3.75 in a random direction, more at 0.56 N(0, I); scale 1.313.

        The public code means a scale of 1 there, which softplus makes 1.313. trunk: keywords of `tabular_trunk`, its
        defaults the UCI net; options: keywords of FlowGMM.
        """
        means = antipodal_means(features, generator=generator) if classes == 2 else (
            random_means(classes, features, 0.56, generator))
        flow = tabular_trunk(features, **trunk or {})
        return cls(flow, means, **{"scale": math.log1p(math.e)} | options)

    @classmethod
    def toy(cls, classes: int = 2, radius: float = 3.5, start: float = 0.0, trunk: Mapping | None = None,
            **options) -> FlowGMM:
        """FlowGMM on points of the plane, means on a circle; the published moons have radius 4.95, start 5 pi / 4."""
        flow = tabular_trunk(2, **{"couplings": 5, "hidden": 512, "dropout": 0.0} | dict(trunk or {}))
        return cls(flow, circle_means(classes, radius, start), **options)

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], means: Tensor, *, scale: float = 1.0,
                       prior: str | Sequence[float] | Tensor = "uniform") -> FlowGMM:
        """The model of a checkpoint of the public code, izmailovpavel/flowgmm; see `read_flowgmm`.

        state_dict  of its `RealNVP`, `RealNVPMNIST` or `RealNVPTabular`, of any width and depth
        means       [K, D], which image checkpoints hold beside the net
        scale       of its mixture, which it does not save: 1 for images and toy data, softplus(1) = 1.313 for vectors

        Densities are that code's but for a constant, D log 256; its logit layer's inverse forgets the contraction by
        0.9, ours does not. Raises ValueError naming what is missing, unknown or of the wrong shape.
        """
        state = flowgmm_checkpoint.normalized(state_dict)
        trunk, levels = flowgmm_checkpoint.build_trunk(state, means)
        model = cls(trunk, means, levels, scale=scale, prior=prior)
        model.to(next(value.dtype for value in state.values() if value.is_floating_point())).set_scale(scale)
        flowgmm_checkpoint.load(trunk, state)
        return model

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log_base [B], G [B, K]), float32 (float64 for a float64 model). Arguments as in `ClassFlow`.

        Continuous data takes no noise.
        """
        z, log_det = self._latents(x, noise)
        return log_det, self.head.scores(z)

    def initialize(self, x: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> None:
        """Starts every data-dependent layer of the trunk from the batch, and an empirical class prior from `labels`.

        labels  of the training data, -1 for unlabelled, any number of them

        Raises ValueError for an empirical class prior without labels, and as the layers do.
        """
        empirical = self.head.prior.kind == "empirical"
        if empirical and labels is None:
            raise ValueError("FlowGMM.initialize: labels is None, expected training labels for the empirical class "
                             "prior")
        self.trunk.initialize(self._continuous(x, noise))
        if empirical:
            self.head.prior.count(labels)

    @torch.no_grad()
    def place_means(self, kind: str, x: Tensor, labels: Tensor, radius: float = 1.0, noise: Tensor | None = None,
                    generator: torch.Generator | None = None) -> None:
        """Puts the class means where data [B, *shape] with labels [B] (-1: unlabelled) says, times `radius`.

        kind  "data": class means of x itself; "latents": class means of z; "latent_of_mean": z of the class means of x;
              "rows": z of a random row of each class, of an unlabelled row for a class without labels

        The trunk is used as training uses it, and stays as it is. Raises ValueError for an unknown kind, or a class
        without rows.
        """
        if kind not in MEANS:
            raise ValueError(f"FlowGMM.place_means: kind is {kind!r}, expected one of {', '.join(MEANS)}")
        check_labels("FlowGMM.place_means", "labels", labels, len(x), self.classes, unlabelled=True)
        v, trunk = self._continuous(x, noise), copy.deepcopy(self.trunk)  # batch normalisation counts what it sees
        if kind in ("data", "latent_of_mean"):
            means = class_averages(v, labels, self.classes)
            means = means if kind == "data" else trunk(means)[0]
        else:
            z = trunk(v)[0]
            means = class_averages(z, labels, self.classes) if kind == "latents" else (
                z[self._row_of_each_class(labels, generator)])
        self.head.means.copy_(radius * means.flatten(1))

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Makes `scale` the standard deviation of every class."""
        if not 0 < scale < math.inf:
            raise ValueError(f"FlowGMM: scale is {scale}, expected a positive number")
        self.head.rho.fill_(scale + math.log(-math.expm1(-scale)))  # softplus of it is scale

    @torch.no_grad()
    def calibrate(self, z: Tensor, labels: Tensor) -> float:
        """Makes one scale for all classes that of the least mean -log p(y | z), and returns it; the trunk stays.

        z [B, D], as `embed` gives it, and labels [B] of data held out from training. Raises ValueError where no scale
        is best: where every row has its own class's mean nearest, and where no scale beats the prior.
        Source: Izmailov et al. 2020, section on calibration.
        """
        scale = calibrated_scale(z, labels, self.head.means, self.head.prior.log_prob())
        self.set_scale(scale)
        return scale

    @torch.no_grad()
    def sample(self, n: int, y: int | Tensor | None = None, temperature: float = 1.0,
               generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape] data (images in [0, 1]) of class y.

        y            one class for all, or labels [n]; None: drawn from p(y)
        temperature  multiplies the standard deviations
        """
        labels = self.head.prior.sample(n, generator) if y is None else self._labels("sample", y, n)
        return self.decode(self.head.sample(labels, temperature, generator))

    def prototypes(self) -> Tensor:
        """[K, *shape]: the data whose latents are the class means."""
        return self.decode(self.head.means)

    def embed(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """z [B, D], all latents of x."""
        return self._latents(x, noise)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The data [B, *shape] of latents z [B, D], by the trunk as evaluation has it; images are clamped to [0, 1]."""
        training = self.trunk.training
        self.trunk.eval()
        x, _ = self.trunk.inverse(z.view(len(z), *self.trunk.output_shape(self.shape)))
        self.trunk.train(training)
        return x if self.levels == 1 else x.clamp(0, 1)

    def _latents(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        z, log_det = self.trunk(self._continuous(x, noise))
        return z.flatten(1), log_det

    def _row_of_each_class(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        rows = torch.randperm(len(labels), generator=generator).to(labels.device)
        unlabelled, chosen = iter(rows[labels[rows] < 0]), []
        for label in range(self.classes):
            row = next(iter(rows[labels[rows] == label]), None)
            row = next(unlabelled, None) if row is None else row
            if row is None:
                raise ValueError(f"FlowGMM.place_means: labels leave no row for class {label}, expected a labelled one "
                                 "or enough unlabelled ones")
            chosen.append(row)
        return torch.stack(chosen)
