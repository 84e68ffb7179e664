"""Principal components of images, which Gaussian models of SVHN and NORB describe in place of pixels."""

from __future__ import annotations

import torch
from sklearn.decomposition import PCA as SklearnPCA
from torch import Tensor, nn


class PCA(nn.Module):
    """z = whitened principal components of x: [B, *shape] floats to [B, components], and back.

        z = (x - mean) W / std        x = mean + (z std) W^T,  the nearest x that the components can express

    A module, so that it moves to a device and is saved with the model it serves. Made by `fit`; __init__ makes one to
    load a state_dict into. With whiten=False std is 1.
    """

    def __init__(self, shape: tuple[int, ...], components: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        features = torch.Size(shape).numel()
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("directions", torch.zeros(components, features))
        self.register_buffer("scale", torch.ones(components))

    @classmethod
    def fit(cls, x: Tensor, components: int, whiten: bool = True) -> PCA:
        """The components of most variance, in float64, deterministic. x is [N, *shape], integers or floats, N at least
        components + 1. Raises ValueError for fewer rows, features or directions of variance."""
        rows = x.flatten(1).to("cpu", torch.float64, copy=True)
        most = min(len(rows) - 1, rows.shape[1])
        if not 1 <= components <= most:
            raise ValueError(f"PCA: components is {components}, expected 1 to {most} for {len(rows)} rows of "
                             f"{rows.shape[1]} features")
        center = rows.mean(0)
        rows -= center  # the solver subtracts means from squares, which cancels where they are large
        found = SklearnPCA(components, svd_solver="covariance_eigh").fit(rows.numpy())
        variance = torch.from_numpy(found.explained_variance_)
        if whiten and not variance[-1] > 1e-12 * variance[0]:
            used = int((variance > 1e-12 * variance[0]).sum())
            raise ValueError(f"PCA: x varies in {used} directions, expected at least components = {components}")
        pca = cls(x.shape[1:], components)
        pca.center.copy_(center)
        pca.directions.copy_(torch.from_numpy(found.components_))
        if whiten:
            pca.scale.copy_(variance.sqrt())
        return pca.to(x.device)

    def forward(self, x: Tensor) -> Tensor:
        """[B, components] of x [B, *shape], in the buffers' dtype."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"PCA: x has shape {tuple(x.shape)}, expected (B, {', '.join(map(str, self.shape))})")
        return (x.flatten(1).to(self.center) - self.center) @ self.directions.mT / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        """[B, *shape] of z [B, components]."""
        return (self.center + (z * self.scale) @ self.directions).view(len(z), *self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape}, components={len(self.scale)}"
