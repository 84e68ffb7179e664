"""Semi-conditional normalizing flows: one trunk for all classes, a class head on a part of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastflow.models import reference_checkpoint
from fastflow.models.class_flow import ClassFlow
from fastflow.models.trunks import conditional_flow, conv_trunk, vector_trunk
from fastflow.nn import Dequantize, DiagonalNormal, FlowClassHead, FlowSequential, GaussianClassHead


class SCNF(ClassFlow):
    """p(x, y) with x -> trunk -> [z_aux | z_f], z_aux normal, and z_f, y described by the head.

        log_base = log|det trunk| + log N(z_aux)          G[k] = log p(z_f, y = k) of the head

    trunk        flow of images [B, *shape] to vectors [B, D], its tail z_f; see `conv_trunk`
    head         `FlowClassHead` (SCNF-GLOW) or `GaussianClassHead` (SCNF-GMM) on the last `head.features` latents; with
                 one class the model is a plain flow, without classes
    levels       grey levels of images; 1 for continuous data, which is taken as it is
    learn_scale  of the base of z_aux, see `DiagonalNormal`

    The trunk runs once a row, the head once for all rows and classes. Raises ValueError if head and trunk do not fit.
    Source: Atanov et al. 2019, "Semi-conditional normalizing flows for semi-supervised learning", arXiv 1905.00505.
    """

    def __init__(self, trunk: FlowSequential, head: FlowClassHead | GaussianClassHead, levels: int,
                 learn_scale: bool = True) -> None:
        super().__init__()
        self.shape = trunk.shape
        self.features = math.prod(trunk.shape)
        self.classes, self.levels = head.classes, levels
        if head.features > self.features:
            raise ValueError(f"SCNF: head describes {head.features} features, expected at most the trunk's "
                             f"{self.features}")
        self.dequantize = None if levels == 1 else Dequantize(levels)
        self.trunk = trunk
        self.head = head
        self.aux_base = DiagonalNormal(self.features - head.features, learn_scale)

    @classmethod
    def build(cls, image: Sequence[int], levels: int, classes: int, *, trunk: Mapping, head: Mapping,
              prior: str | Sequence[float] | Tensor = "uniform") -> SCNF:
        """SCNF on images of any size or on vectors, trunk and head each given as its kind and its keywords.

        image  (C, H, W), or (D,)
        trunk  kind "conv" for `conv_trunk`, "vector" for `vector_trunk`
        head   on the last scale: kind "flow" for `conditional_flow` (and context_features, threshold of
               `FlowClassHead`), "gaussian" for one Gaussian a class (covariance of `GaussianClassHead`), "normal" for a
               model without classes, all of whose latents are N(0, diag(scale^2))

        Raises ValueError for an unknown kind, or where image and trunk do not fit.
        """
        trunk, head = dict(trunk), dict(head)
        make_trunk = _of_kind("trunk", trunk.pop("kind", None), {"conv": conv_trunk, "vector": vector_trunk})
        flow = make_trunk(image, **trunk)
        make_head = _of_kind("head", head.pop("kind", None), _HEADS)
        return cls(flow, make_head(math.prod(flow.last_shape), classes, prior=prior, **head), levels)

    @classmethod
    def glow(cls, image: Sequence[int], levels: int, classes: int, *, trunk: str = "conv",
             prior: str | Sequence[float] | Tensor = "uniform", **options) -> SCNF:
        """SCNF-GLOW on images of any size: a trunk and a conditional flow on its last scale.

        image    (C, H, W)
        trunk    "conv" for `conv_trunk`, "vector" for `vector_trunk`
        options  keywords of the trunk; with head_ before their name, of `conditional_flow`
        """
        of_head = {name: options.pop(name) for name in list(options) if name.startswith("head_")}
        head = {"kind": "flow"} | {name.removeprefix("head_"): value for name, value in of_head.items()}
        return cls.build(image, levels, classes, trunk={"kind": trunk} | options, head=head, prior=prior)

    @classmethod
    def mnist(cls, **options) -> SCNF:
        """The published MNIST model: 28 x 28, 256 levels, trunk of 6,299,987 and head of 9,574,676 parameters.

        options override keywords of `glow`.
        """
        return cls.glow(**{"image": (1, 28, 28), "levels": 256, "classes": 10} | options)

    @classmethod
    def digits(cls, **options) -> SCNF:
        """The model of configs/scnf-glow-digits.yaml, for the digits of scikit-learn: 8 x 8, 17 levels.

        options override keywords of `glow`.
        """
        return cls.glow(**{
            "image": (1, 8, 8), "levels": 17, "classes": 10, "trunk": "vector", "steps": 3, "dropout": 0.1,
            "head_levels": 1, "head_steps": 2, "head_hidden": 64, "head_blocks": 1, "head_dropout": 0.1,
        } | options)

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor],
                       prior: str | Sequence[float] | Tensor = "uniform") -> SCNF:
        """The model of a checkpoint of the public code, SamsungLabs/semi-supervised-NFs; see `read_reference`.

        state_dict  of its FlowPDF with the trunk `mnist-masked` and the head `cond-flow`, both with `full`
                    convolutions; of any image size, depth and width
        prior       p(y), which that code keeps outside of its checkpoints: the class frequencies of its labelled
                    images

        log_prob, log_joint and latents are that code's to rounding. The inverse is exact, where that code's masked
        couplings divide by a scale other than the one they multiplied by. Raises ValueError naming what is missing,
        unknown or of the wrong shape.
        """
        state = reference_checkpoint.normalized(state_dict)
        trunk, head = reference_checkpoint.describe(state)
        features, context_features, classes = head.pop("features"), head.pop("context_features"), head.pop("classes")
        flow = conditional_flow(features, context_features, **head)
        model = cls(conv_trunk(**trunk), FlowClassHead(flow, features, classes, context_features, prior), levels=256)
        model.to(state["prior.flow.embeddings.weight"].dtype)
        reference_checkpoint.load(model, state)
        return model

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log_base [B], G [B, K]), float32 (float64 for a float64 model). Arguments as in `ClassFlow`."""
        z_aux, z_f, log_det = self._latents(x, noise)
        return log_det + self.aux_base.log_prob(z_aux), self.head.scores(z_f)

    def initialize(self, x: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> None:
        """Starts every data-dependent layer from the batch, the head's from all rows with all classes.

        labels  of the training data, -1 for unlabelled, any number of them: an empirical class prior needs them
        noise   as in `class_scores`; without it pixels that never vary may leave a channel without variance

        Raises ValueError for fewer than 2 rows, a channel without variance, or an empirical class prior without labels.
        What has started before is left alone.
        """
        empirical = self.head.prior.kind == "empirical"
        if empirical and labels is None:
            raise ValueError("SCNF.initialize: labels is None, expected training labels for the empirical class prior")
        self.trunk.initialize(self._continuous(x, noise))
        with torch.no_grad():
            _, z_f, _ = self._latents(x, noise)
        self.head.initialize(z_f)
        if empirical:
            self.head.prior.count(labels)

    @torch.no_grad()
    def sample(self, n: int, y: int | Tensor | None = None, temperature: float = 1.0,
               generator: torch.Generator | None = None) -> Tensor:
        """[n, *shape] images in [0, 1] of class y.

        y            one class for all, or labels [n]; None: drawn from p(y)
        temperature  multiplies the standard deviations of z_h and z_aux
        """
        labels = self.head.prior.sample(n, generator) if y is None else self._labels("sample", y, n)
        z_f = self.head.sample(labels, temperature, generator)
        z_aux = self.aux_base.sample(n, temperature, generator, like=z_f)
        return self._image(z_aux, z_f)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: int | Tensor, source: int | Tensor | None = None,
                    noise: Tensor | None = None) -> Tensor:
        """[B, *shape] images in [0, 1]: x as it would look with class y, from the same z_aux and z_h.

        y       one class for all, or labels [B]
        source  the class of x itself; None: the predicted one
        """
        z_aux, z_f, _ = self._latents(x, noise)
        source = self.head.scores(z_f).argmax(1) if source is None else self._labels("reconstruct", source, len(x))
        z_h = self.head.encode(z_f, source)
        return self._image(z_aux, self.head.decode(z_h, self._labels("reconstruct", y, len(x))))

    def embed(self, x: Tensor, y: int | Tensor | None = None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(z_f, z_h), each [B, head.features]: the latents that the class explains, and what it leaves unexplained.

        y  the class of x, which z_h depends on; None: the predicted one
        """
        _, z_f, _ = self._latents(x, noise)
        labels = self.head.scores(z_f).argmax(1) if y is None else self._labels("embed", y, len(x))
        return z_f, self.head.encode(z_f, labels)

    def _latents(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(z_aux [B, a], z_f [B, d], log_det [B]) of the trunk."""
        z, log_det = self.trunk(self._continuous(x, noise))
        z_aux, z_f = z.flatten(1).tensor_split([self.features - self.head.features], dim=1)
        return z_aux, z_f, log_det

    def _image(self, z_aux: Tensor, z_f: Tensor) -> Tensor:
        z = torch.cat([z_aux, z_f], dim=1)
        x, _ = self.trunk.inverse(z.view(len(z), *self.trunk.output_shape(self.shape)))
        return x if self.levels == 1 else x.clamp(0, 1)


def _flow_head(features: int, classes: int, context_features: int | None = None, threshold: float | None = None, *,
               prior: str | Sequence[float] | Tensor, **options) -> FlowClassHead:
    context_features = classes if context_features is None else context_features
    flow = conditional_flow(features, context_features, **options)
    return FlowClassHead(flow, features, classes, context_features, prior, threshold=threshold)


def _normal_head(features: int, classes: int, *, prior: str | Sequence[float] | Tensor) -> GaussianClassHead:
    """One Gaussian around 0 whatever the classes, as `DiagonalNormal` has it."""
    head = GaussianClassHead(features, 1, means=torch.zeros(1, features))
    head.means.requires_grad_(False)
    return head


_HEADS = {"flow": _flow_head, "gaussian": GaussianClassHead, "normal": _normal_head}


def _of_kind(name: str, kind: str, kinds: Mapping[str, Callable]) -> Callable:
    if kind not in kinds:
        raise ValueError(f"SCNF: {name} kind is {kind!r}, expected one of {', '.join(kinds)}")
    return kinds[kind]
