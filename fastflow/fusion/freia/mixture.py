"""FrEIA: GaussianMixtureModel, an affine map a mixture component, without a loop over the rows."""

import torch
from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.ops._define import without_autocast


class Mixture(Arithmetic):
    """GaussianMixtureModel: z = U (x - mu), U upper triangular, given as the logarithms of its diagonal and then its
    rows above the diagonal. Of all components, or of one a row."""

    def prepare(self) -> None:
        size, (rows, columns) = self.x_dims, torch.triu_indices(self.x_dims, self.x_dims, 1)
        place = torch.full((size, size), size + len(rows))  # below the diagonal, the zero behind the entries
        place.fill_diagonal_(0).diagonal().copy_(torch.arange(size))
        place[rows, columns] = size + torch.arange(len(rows))
        keep(self, "place", place.flatten().to(self.mask_diagonal.device))

    def forward(self, x, c, rev=False, jac=True):
        assert len(x) == 1, f"GaussianMixtureModel got {len(x)} inputs, but only one is allowed."
        x, (weights, mean, entries, component) = x[0], c
        if component is not None:
            if not isinstance(component, Tensor):
                component = self.pick_mixture_component(weights, seed=component)
            component = component.to(weights.device, torch.int64).view(-1, 1, 1)
            mean, entries = (each.take_along_dim(component, 1)[:, 0] for each in (mean, entries))
        elif not rev and x.dim() < 3:
            x = x[:, None]
        log_diagonal, above = entries[..., : self.x_dims], entries[..., self.x_dims :]
        factor = torch.cat((log_diagonal.exp(), above, torch.zeros_like(entries[..., :1])), -1)
        factor = factor.index_select(-1, self._fused_place.to(factor.device)).unflatten(-1, (self.x_dims, self.x_dims))
        with without_autocast(x):
            if rev:
                z = mean + torch.linalg.solve_triangular(factor, x[..., None], upper=True)[..., 0]
            else:
                z = (factor @ (x - mean)[..., None])[..., 0]
        log_det = log_diagonal.sum(-1) if jac else None
        return [z], -log_det if jac and rev else log_det


LAYERS = (
    Layer("FrEIA", "GaussianMixtureModel", Mixture, ("forward", "pick_mixture_component"),
          ("ac85a5216894", "8782552bc993"), anything, "all components, given ones, and ones drawn by a seed"),
)
