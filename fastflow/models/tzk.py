"""TzK: a flow of the data, and knowledge types that can be added to it, learned as encoder and decoder at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastflow.models.class_flow import ClassFlow
from fastflow.models.knowledge import Knowledge, Latent, filled
from fastflow.models.tzk_flows import tzk_trunk
from fastflow.nn import Dequantize, DiagonalNormal, FlowSequential
from fastflow.ops._checks import check_labels

_DRAWS = 64  # of C, for likelihoods that integrate it out
_TRIES = 20  # at draws of T that float32 can hold


class TzK(ClassFlow):
    """p(T) of data T, and knowledge types K^i = (kappa^i in {0, 1}, C^i) that overlap and need not be known.

        log M = log p(T) + 1/2 sum_i (log p(K^i | T) + log p(T | K^i) - log p(T) + log p(K^i))        maximised
        penalty = sum_i lambda_i |log p(K^i | T) + log p(T) - log p(T | K^i) - log p(K^i)|            minimised

    trunk      flow of T [B, *shape] to Z of any shape; see `tzk_trunk`
    levels     grey levels of images, whose T is the dequantised image in [0, 1]; 1: x is continuous and is T itself
    classes    names of the types that are the classes 0 .. K - 1
    groups     names of the types that are the groups of the data, as `ImageData.groups`
    classless  those of the groups whose rows have no class, as `ImageData.classless`
    types      names of further knowledge types; the factors of each type are a `Knowledge`
    options    keywords of `Knowledge`, the same for all types; `add` takes other ones

    As a `ClassFlow` it has log_base = log p(T), and G = log p(kappa^k = 1 | T) normalised over the K classes; without
    any, K = 1 and G = 0. So log_prob and bits_per_dim are the prior's, and predict is argmax_k p(kappa^k = 1 | T).
    log M is no normalised likelihood: report log_prob and log_conditional.
    Raises ValueError for a name that is given twice, or a classless group that is no group.
    Source: Livne and Fleet 2018, "TzK Flow - Conditional Generative Model", arXiv 1811.01837.
    """

    def __init__(self, trunk: FlowSequential, levels: int, classes: Sequence[str] = (), groups: Sequence[str] = (),
                 classless: Sequence[str] = (), types: Sequence[str] = (), **options) -> None:
        super().__init__()
        self.shape, self.features, self.levels = trunk.shape, math.prod(trunk.shape), levels
        self.trunk = trunk
        self.dequantize = Dequantize(levels) if levels > 1 else None
        self.base = DiagonalNormal(self.features)
        torch.nn.init.constant_(self.base.rho, math.log(math.e - 1))  # scale 1
        self.knowledge = torch.nn.ModuleDict()
        for name in (*groups, *types, *classes):
            self._put(name, options)
        if unknown := set(classless) - set(groups):
            raise ValueError(f"TzK: classless has {unknown.pop()!r}, expected groups: {', '.join(groups) or 'none'}")
        self.class_types, self.group_types, self.classless = list(classes), list(groups), list(classless)

    @classmethod
    def build(cls, image: Sequence[int], levels: int, classes: Sequence[str] = (), *, steps: int = 10, tile: int = 16,
              alpha: float = 0.05, reversible: bool = False, **options) -> TzK:
        """TzK on images (C, H, W); `tile` is that of the trunk and of the types, options are other keywords of TzK."""
        trunk = tzk_trunk(image, steps=steps, tile=tile, alpha=alpha, reversible=reversible)
        return cls(trunk, levels, classes, tile=tile, **options)

    @classmethod
    def mnist_omniglot(cls, **options) -> TzK:
        """The published model of `data.mnist_omniglot`; its classes are the digits. options override `build`'s."""
        return cls.build(**{"image": (1, 32, 32), "levels": 256, "classes": [f"digit_{digit}" for digit in range(10)],
                            "groups": ["mnist", "omniglot"], "classless": ["omniglot"]} | options)

    @property
    def classes(self) -> int:
        """K, at least 1."""
        return max(1, len(self.class_types))

    def add(self, name: str, is_class: bool = False, **options) -> Knowledge:
        """Adds a type to a trained model, and freezes all that was there: only the new factors train from now on.

        options are keywords of `Knowledge`; `is_class` makes it the last class. It starts as the prior, nearly:
        p(T | kappa = 1, C) = p(T). `terms(names=[name])` spends nothing on the others.
        """
        self.requires_grad_(False)
        added = self._put(name, options).to(self.base.rho)
        self.class_types += [name] if is_class else []
        return added

    def initialize(self, x: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> None:
        """Starts every data-dependent layer that has not started from the batch; labels are not used.

        Raises ValueError for fewer than 2 rows, or an element without variance.
        """
        with torch.no_grad():
            self.trunk.initialize(self._continuous(x, noise))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Latent:
        """Z, log|det dZ/dT| and log p(T). Arguments as in `ClassFlow`."""
        z, log_det = self.trunk(self._continuous(x, noise))
        return Latent(z, log_det, log_det + self.base.log_prob(z.flatten(1)))

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log p(T) [B], log p(y | T) [B, K]). Arguments as in `ClassFlow`."""
        data = self.encode(x, noise)
        if not self.class_types:
            return data.log_prob, data.log_prob.new_zeros(len(x), 1)
        odds = torch.stack([self.knowledge[name].log_odds(data.z) for name in self.class_types], 1)
        return data.log_prob, torch.nn.functional.logsigmoid(odds).log_softmax(1)

    def observed(self, labels: Tensor, groups: Tensor | None = None) -> dict[str, Tensor]:
        """kappa as `terms` takes it, of rows with labels int64 [B], -1 unknown, and numbers of their groups int64 [B].

        A group's type is known of every row; a class's where the label is, and absent in groups without classes.
        Raises TypeError or ValueError naming the argument.
        """
        check_labels("TzK.observed", "labels", labels, len(labels), self.classes, unlabelled=True)
        if (groups is None) == bool(self.group_types):
            raise ValueError(f"TzK.observed: groups is {'None' if groups is None else 'given'}, expected [B] of the "
                             f"model's groups, {', '.join(self.group_types) or 'none'}")
        if groups is not None:
            check_labels("TzK.observed", "groups", groups, len(labels), len(self.group_types), unlabelled=False)
        kappa = {name: (groups == k).to(labels.dtype) for k, name in enumerate(self.group_types)}
        unknown = sum((kappa[name] for name in self.classless), labels.new_full(labels.shape, -1))
        return kappa | {name: torch.where(labels < 0, unknown, (labels == k).to(labels.dtype))
                        for k, name in enumerate(self.class_types)}

    def terms(self, x: Tensor, kappa: Mapping[str, Tensor] | None = None, style: Mapping[str, Tensor] | None = None,
              noise: Tensor | None = None, style_noise: Mapping[str, Tensor] | None = None,
              names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The loss -mean log M + penalty on data as the terms of a sum, each 0-d, nats.

        kappa        integers [B] for any of the types: 1 present, 0 absent, -1 unknown; left out: unknown. An unknown
                     kappa is summed over, weighted by p(kappa | T), through which no gradient goes
        style        C [B, c] for any of the types, NaN where unknown: then it is a draw of p(C | T, kappa)
        style_noise  standard normal [B, c] for any of the types, which make these draws; left out: drawn
        names        of the types that count, by default all

        Returns nll, -mean log p(T); knowledge, what else is in -mean log M; penalty. Raises TypeError or ValueError
        naming the argument.
        """
        data = self.encode(x, noise)
        kappa, style, style_noise = kappa or {}, style or {}, style_noise or {}
        for given in (kappa, style, style_noise, names or ()):
            for name in given:
                self._knowledge("TzK.terms", name)
        knowledge = penalty = torch.zeros_like(data.log_prob)
        for name in self.knowledge if names is None else names:
            type_ = self.knowledge[name]
            if name in style:
                type_.check_style("TzK.terms", "style", style[name], len(x))
            eps = style_noise[name] if name in style_noise else self._normal(len(x), type_.style)
            type_.check_style("TzK.terms", "style_noise", eps, len(x))
            for present, weight in type_.weights(kappa.get(name), type_.log_odds(data.z)):
                drawn = type_.draw_style(data.z, eps) if present else eps
                log_mean, gap = type_.compound(data, filled(style.get(name), drawn), present)
                knowledge, penalty = knowledge - weight * log_mean, penalty + weight * gap
        return {"nll": -data.log_prob.mean(), "knowledge": knowledge.mean(), "penalty": penalty.mean()}

    def terms_without_data(self, name: str, rows: int, kappa: Tensor | None = None, style: Tensor | None = None,
                           ) -> dict[str, Tensor]:
        """The same terms of one type for `rows` samples whose T is missing, and perhaps C and kappa with it.

        kappa, style  as in `terms`. A missing C is drawn from p(C); a missing kappa is summed over, weighted by
                      p(kappa | C), without gradient; T is drawn from p(T | kappa, C), with gradient

        The discriminators p(kappa | .) are frozen: they learn nothing from samples. Beware of much weight on this: T
        that concentrates is what raises log p(T) of its own samples. Raises FloatingPointError as `sample`.
        """
        type_ = self._knowledge("TzK.terms_without_data", name)
        if style is not None:
            type_.check_style("TzK.terms_without_data", "style", style, rows)
        style = filled(style, self._normal(rows, type_.style))
        nll = knowledge = penalty = torch.zeros_like(style[:, 0])
        for present, weight in type_.weights(kappa, type_.style_log_odds(style)):
            given = (type_, style) if present else (None, None)
            data = self._decoded(self._latent(self._finite_noise("TzK.terms_without_data", rows, *given), *given))
            log_mean, gap = type_.compound(data, style, present, frozen=True)
            nll, knowledge = nll - weight * data.log_prob, knowledge - weight * log_mean
            penalty = penalty + weight * gap
        return {"nll": nll.mean(), "knowledge": knowledge.mean(), "penalty": penalty.mean()}

    def log_conditional(self, x: Tensor, name: str, style: Tensor | None = None, noise: Tensor | None = None, *,
                        draws: int = _DRAWS, generator: torch.Generator | None = None) -> Tensor:
        """[B] log p(T | kappa = 1, C) for C = style [B, c]; for None log p(T | kappa = 1), nats.

        Then C is integrated out by importance sampling with `draws` of p(C | T, kappa = 1) and of p(C), half of each,
        which takes memory for draws * B * D numbers; on average it is a lower bound, which rises with draws.
        p(kappa = 1) is quasi-Monte Carlo of 4096 points. Use `class_scores`' log_base, or log_prob, for log p(T).
        """
        type_ = self._knowledge("TzK.log_conditional", name)
        data = self.encode(x, noise)
        if style is not None:
            type_.check_style("TzK.log_conditional", "style", style, len(x))
            return type_.data_given_style.log_prob(data.z, style) + data.log_det
        return self._log_joint(data, type_, draws, generator) - type_.log_present()

    def log_class_joint(self, x: Tensor, noise: Tensor | None = None, *, draws: int = _DRAWS,
                        generator: torch.Generator | None = None) -> Tensor:
        """[B, K] log p(T, kappa^k = 1), C integrated out as in `log_conditional`: its argmax is Bayes' prediction."""
        if not self.class_types:
            raise ValueError("TzK.log_class_joint: the model has no classes, expected some of its types to be classes")
        data = self.encode(x, noise)
        return torch.stack([self._log_joint(data, self.knowledge[name], draws, generator) for name in self.class_types],
                           dim=1)

    def product_of_experts(self, x: Tensor, names: Sequence[str], noise: Tensor | None = None, *, draws: int = _DRAWS,
                           generator: torch.Generator | None = None) -> Tensor:
        """[B] log p(T) + sum_i (log p(T | kappa^i = 1) - log p(T)): how well T fits several types at once.

        A score, not a normalised density, and without a sampler.
        """
        data, score = self.encode(x, noise), 0.0
        for name in names:
            type_ = self._knowledge("TzK.product_of_experts", name)
            score = score + self._log_joint(data, type_, draws, generator) - type_.log_present() - data.log_prob
        return data.log_prob + score

    def bits_per_pixel(self, log_prob: Tensor, pixels: int | None = None) -> Tensor:
        """Bits of the quantised x for each of `pixels`, by default D, from any log-density of T.

        784 of a padded 32 x 32 image divides the same bits, those of the padding too, by the digit's own pixels.
        """
        return (self.features * math.log(self.levels) - log_prob) / ((pixels or self.features) * math.log(2))

    @torch.no_grad()
    def sample(self, n: int, y: int | str | Tensor | None = None, temperature: float = 1.0,
               generator: torch.Generator | None = None, style: Tensor | None = None) -> Tensor:
        """[n, *shape] draws of T, C first, then Z, then T; images in [0, 1].

        y            a class, or a type's name, for all, or classes [n]: of p(T | kappa = 1); None: of p(T)
        temperature  multiplies the standard deviations of Z
        style        C [n, c]; None: drawn from p(C | kappa = 1)

        The inverse of SymLog is an exponential, and a stack of them may leave the range of the dtype; such draws are
        made again. Raises FloatingPointError if too many are: the model is too little trained, or too hot.
        """
        type_ = None
        if isinstance(y, Tensor):
            check_labels("TzK.sample", "y", y, n, len(self.class_types), unlabelled=False)
            images = self._normal(n, *self.shape)
            for k in y.unique().tolist():
                given = None if style is None else style[y == k]
                images[y == k] = self.sample(int((y == k).sum()), k, temperature, generator, given)
            return images
        if y is not None:
            name = self.class_types[y] if isinstance(y, int) and 0 <= y < len(self.class_types) else y
            type_ = self._knowledge("TzK.sample", name)
            style = type_.sample_style(n, generator) if style is None else style
            type_.check_style("TzK.sample", "style", style, n)
        elif style is not None:
            raise ValueError("TzK.sample: style is given and y is None, expected a class or a type that has the style")
        noise = self._finite_noise("TzK.sample", n, type_, style, temperature, generator)
        x, _ = self.trunk.inverse(self._latent(noise, type_, style))
        return x if self.dequantize is None else x.clamp(0, 1)

    def _put(self, name: str, options: Mapping) -> Knowledge:
        if not name.isidentifier() or hasattr(self.knowledge, name):
            raise ValueError(f"TzK: the type's name is {name!r}, expected an identifier that is not among "
                             f"{', '.join(self.knowledge) or 'the other names'}")
        self.knowledge[name] = Knowledge(self.trunk.output_shape(self.shape), **options)
        self.knowledge[name].data_given_style.start_as(torch.nn.functional.softplus(self.base.rho))
        return self.knowledge[name]

    def _knowledge(self, op: str, name: object) -> Knowledge:
        if name not in self.knowledge:
            raise ValueError(f"{op}: the type is {name!r}, expected one of {', '.join(self.knowledge) or 'none'}")
        return self.knowledge[name]

    def _log_joint(self, data: Latent, type_: Knowledge, draws: int, generator: torch.Generator | None) -> Tensor:
        if draws < 1:
            raise ValueError(f"TzK: draws is {draws}, expected at least 1")
        return type_.log_joint(data, self._normal(draws, len(data.z), type_.style, generator=generator))

    def _normal(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        rho = self.base.rho
        return torch.randn(shape, generator=generator, dtype=rho.dtype, device=rho.device)

    def _latent(self, noise: Tensor, type_: Knowledge | None, style: Tensor | None) -> Tensor:
        """Z of p(Z | kappa = 1, C), or of p(Z), from standard normal noise [B, D]."""
        if type_ is None:
            return (noise * torch.nn.functional.softplus(self.base.rho)).view(-1, *self.trunk.output_shape(self.shape))
        return type_.data_given_style.draw(style, noise)

    @torch.no_grad()
    def _finite_noise(self, op: str, n: int, type_: Knowledge | None, style: Tensor | None, temperature: float = 1.0,
                      generator: torch.Generator | None = None) -> Tensor:
        """Normal noise [n, D] whose T, and its log-densities, are finite; drawn anew where they are not."""
        noise = temperature * self._normal(n, self.features, generator=generator)
        rows = torch.arange(n, device=noise.device)
        for _ in range(_TRIES):
            data = self._decoded(self._latent(noise[rows], type_, style if style is None else style[rows]))
            rows = rows[~data.log_prob.isfinite()]
            if not len(rows):
                return noise
            noise[rows] = temperature * self._normal(len(rows), self.features, generator=generator)
        raise FloatingPointError(f"{op}: {len(rows)} of {n} draws of T left the range of {noise.dtype} {_TRIES} times, "
                                 "expected finite ones: train longer, or lower the temperature")

    def _decoded(self, z: Tensor) -> Latent:
        """As `encode`, of a Z whose T is not needed."""
        log_det = -self.trunk.inverse(z)[1]
        return Latent(z, log_det, log_det + self.base.log_prob(z.flatten(1)))
