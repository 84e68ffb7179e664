"""What the gate asks of one launch: the base of the cases of every kernel."""

from dataclasses import dataclass

import torch

# 5 programs of 128 threads and 96 registers fit a multiprocessor, each with 12 KB of loads under way: twice what 4.3
# TB/s over 132 multiprocessors needs at 700 ns. The gain's gradient, which loops, and float64 hold more values.
REGISTERS, REGISTERS_GAIN, REGISTERS_DOUBLE = 96, 128, 168
# The sums of channel_mix's backward: 16 warps of 128 registers fill a multiprocessor, and pixel_tiles starts no more.
REGISTERS_MATRIX = 128
SHARED_BYTES = 4096


@dataclass(frozen=True)
class KernelCase:
    """One launch on x of `shape`, on which all main arrays of a `wide` layout must move 128 bits at a time."""

    kernel: str
    variant: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (65536, 784)
    layout: str = "contiguous"

    parameters = None  # the dtype of the op's parameters where it is not x's
    # Accesses below 128 bits: two rows' log_det and a gain or mask; one narrow main array would make four.
    narrow = 3

    @property
    def registers(self) -> int:
        """The budget of a thread."""
        return REGISTERS_DOUBLE if self.dtype == "float64" else REGISTERS

    @property
    def form(self) -> str:
        """The variant and what else tells the kernel apart."""
        return self.variant

    @property
    def wide(self) -> bool:
        return self.layout != "strided"

    @property
    def shared(self) -> int:
        """The most bytes of shared memory of a program."""
        return SHARED_BYTES

    @property
    def fuses(self) -> bool:
        """Whether its arithmetic has fused multiply-adds."""
        return True

    def elements(self, arguments: dict) -> int:
        """The elements that a program moves of each main array."""
        return arguments["BLOCK_ROWS"] * arguments["BLOCK_FEATURES"]

    def tile(self, arguments: dict) -> str:
        """The tile in words."""
        return f"{arguments['BLOCK_ROWS']}x{arguments['BLOCK_FEATURES']}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The main arrays that the kernel reads."""
        raise NotImplementedError

    @property
    def writes(self) -> tuple[str, ...]:
        """The main arrays that the kernel writes."""
        raise NotImplementedError

    def call(self) -> None:
        """Calls the launcher on meta tensors."""
        raise NotImplementedError

    def empty(self, *shape: int, dtype: str | None = None) -> torch.Tensor:
        """A meta tensor, by default of x's dtype, in the case's layout."""
        dtype = getattr(torch, dtype or self.dtype)
        if self.layout == "strided":
            return torch.empty((*shape, 2), dtype=dtype, device="meta")[..., 1]
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        return tensor.to(memory_format=torch.channels_last) if self.layout == "channels_last" else tensor

    def reduced(self, *shape: int) -> torch.Tensor:
        """A contiguous meta tensor in the dtype of reductions."""
        dtype = torch.promote_types(getattr(torch, self.dtype), torch.float32)
        return torch.empty(shape, dtype=dtype, device="meta")
