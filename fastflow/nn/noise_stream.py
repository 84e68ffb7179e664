"""The state of keyed noise, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastflow.ops.uniform_noise import as_signed, uniform_noise


class NoiseStream(nn.Module):
    """Uniform noise whose seed and step live on the device, so that every replay of a captured CUDA graph draws anew.

    Draw n (from 0) is `ops.uniform_noise` of (seed, step n, row): the same eagerly, in a replay, in a run that resumes
    from the state_dict, and whatever ranks the rows are spread over, as long as all of them draw equally often.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(as_signed(seed)))
        self.register_buffer("step", torch.tensor(0))

    def next_key(self) -> dict[str, Tensor]:
        """The seed and step of one draw, arguments of an op; the stream moves on, on the device's current stream."""
        step = self.step.clone()
        self.step += 1
        return {"seed": self.seed, "step": step}

    def draw(self, shape: Sequence[int], rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise in [0, 1) of `shape` (B, ...) for the global rows [B], on the stream's device; the stream moves on."""
        return uniform_noise(shape, rows=rows, dtype=dtype, **self.next_key())
