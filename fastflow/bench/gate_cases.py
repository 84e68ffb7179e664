"""What the gate compiles: launches of every Triton kernel on meta tensors, and what each should cost."""

import math
from dataclasses import dataclass

import torch

from fastflow.bench.cases import SCALE_MAPS
from fastflow.bench.kernel_case import REGISTERS_GAIN, REGISTERS_MATRIX, KernelCase
from fastflow.kernels import (
    act_norm_backward_cuda,
    act_norm_cuda,
    affine_coupling_backward_cuda,
    affine_coupling_cuda,
    channel_mix_backward_cuda,
    channel_mix_cuda,
    dequantize_logit_cuda,
    logit_backward_cuda,
    logit_cuda,
    sym_log_backward_cuda,
    sym_log_cuda,
    uniform_noise_cuda,
)
from fastflow.ops.scale_map import KINDS


@dataclass(frozen=True)
class CouplingCase(KernelCase):
    """One launch of affine_coupling.

    `variant` is a scale map of the benchmark, or "sigmoid eps=0" or "tanh gain". `parameters` is the dtype of scale and
    shift where it is not x's. The halves of a packed tensor [B, 2 n_active, ...] are scale and shift.
    """

    layout: str = "halves"
    parameters: str | None = None
    shift_first: bool = False
    from_input: bool = False

    @property
    def registers(self) -> int:
        gains = self.dtype != "float64" and self.kernel == "backward" and self.variant == "tanh gain"
        return REGISTERS_GAIN if gains else super().registers

    @property
    def form(self) -> str:
        return self.variant + ", shift first" * self.shift_first + ", from input" * self.from_input

    @property
    def fuses(self) -> bool:
        return self.variant != "additive"

    @property
    def reads(self) -> tuple[str, ...]:
        if self.kernel != "backward":
            return "x_ptr", "scale_ptr", "shift_ptr"
        return "grad_z_ptr", "saved_ptr", "scale_ptr", *(["shift_ptr"] if self.shift_first == self.from_input else [])

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr", "grad_scale_ptr", "grad_shift_ptr") if self.kernel == "backward" else ("z_ptr",)

    def call(self) -> None:
        rows, channels, *space = self.shape
        everything = self.layout in ("mask", "all")
        active = channels if everything else channels // 2
        start, step = {"mask": (0, 1), "all": (0, 1), "interleaved": (1, 2)}.get(self.layout, (channels - active, 1))
        x, parameters = self.empty(*self.shape), self.empty(rows, 2 * active, *space, dtype=self.parameters)
        scale, shift = parameters.contiguous().chunk(2, 1) if self.layout == "strided" else parameters.chunk(2, 1)
        name, _, option = self.variant.partition(" ")
        settings = {"bias": 0.0, "eps": 0.0, "clamp": 1.0} | SCALE_MAPS[name]
        if option == "eps=0":
            settings["eps"] = 0.0
        gain = self.reduced(active) if option == "gain" else None
        mask = torch.empty(self.shape[1:], dtype=torch.bool, device="meta") if self.layout == "mask" else None
        log_det = self.reduced(rows)
        scale = None if name == "additive" else scale
        rest = (start, step, KINDS.index(name), *settings.values(), self.shift_first, self.kernel == "inverse")
        if self.kernel == "backward":
            affine_coupling_backward_cuda(x, log_det, x, scale, shift, gain, mask, *rest, self.from_input, packing=0)
        else:
            affine_coupling_cuda(x, scale, shift, gain, mask, log_det, *rest)


# op: its launchers and their settings but `inverse`, which comes last
_ELEMENTWISE = {
    "logit": (logit_cuda, logit_backward_cuda, {"alpha": 0.05}),
    "sym_log": (sym_log_cuda, sym_log_backward_cuda, {}),
}


@dataclass(frozen=True)
class ElementwiseCase(KernelCase):
    """One launch of an element-wise bijection; `kernel` is the op and "forward", "inverse" or the backward of one."""

    variant: str = ""

    @property
    def form(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in _ELEMENTWISE[self.kernel.split()[0]][2].items())

    @property
    def fuses(self) -> bool:
        return self.kernel != "sym_log backward"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("grad_z_ptr", "x_ptr") if "backward" in self.kernel else ("x_ptr",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr",) if "backward" in self.kernel else ("z_ptr",)

    def call(self) -> None:
        launch, launch_backward, settings = _ELEMENTWISE[self.kernel.split()[0]]
        x, log_det, inverse = self.empty(*self.shape), self.reduced(self.shape[0]), "inverse" in self.kernel
        if "backward" in self.kernel:
            launch_backward(x, log_det, x, *settings.values(), inverse)
        else:
            launch(x, log_det, *settings.values(), inverse)


@dataclass(frozen=True)
class NoiseCase(KernelCase):
    """One launch of uniform_noise, or of dequantize_logit with noise ("keyed") or without ("middle").

    Grey levels, a byte each, need no wide accesses.
    """

    variant: str = "keyed"

    reads = ()
    narrow = 5  # seed, step, two rows' indices, grey levels

    @property
    def fuses(self) -> bool:
        return self.kernel == "dequantize_logit"

    @property
    def writes(self) -> tuple[str, ...]:
        return ("noise_ptr",) if self.kernel == "uniform_noise" else ("z_ptr",)

    def call(self) -> None:
        rows, features = self.shape
        seed, step, index = (torch.empty(size, dtype=torch.int64, device="meta") for size in ((), (), rows))
        dtype = getattr(torch, self.dtype)
        if self.kernel == "uniform_noise":
            uniform_noise_cuda(seed, step, index, features, dtype)
        else:
            key = (seed, step, index) if self.variant == "keyed" else (None, None, None)
            dequantize_logit_cuda(self.empty(*self.shape, dtype="uint8"), *key, 256, 0.05, dtype)


@dataclass(frozen=True)
class ActNormCase(KernelCase):
    """One launch of act_norm; `kernel` is "act_norm forward", "act_norm inverse" or "act_norm backward"."""

    variant: str = "shift first"
    from_input: bool = False

    @property
    def form(self) -> str:
        return self.variant + ", from input" * self.from_input

    @property
    def narrow(self) -> int:
        # a row's log_det, the sum of log_scale, shift and log_scale: of each of 8 features where a channel's pixels are
        # no multiple of 8
        return 18 if self.layout == "contiguous" and math.prod(self.shape[2:]) % 8 else 4

    @property
    def reads(self) -> tuple[str, ...]:
        return ("grad_z_ptr", "saved_ptr") if "backward" in self.kernel else ("x_ptr",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr",) if "backward" in self.kernel else ("z_ptr",)

    def call(self) -> None:
        x, log_det, shift_first = self.empty(*self.shape), self.reduced(self.shape[0]), self.variant == "shift first"
        shift = log_scale = self.reduced(self.shape[1])
        if "backward" in self.kernel:
            act_norm_backward_cuda(x, log_det, x, shift, log_scale, shift_first, False, self.from_input)
        else:
            act_norm_cuda(x, shift, log_scale, log_det, shift_first, "inverse" in self.kernel)


@dataclass(frozen=True)
class MixCase(KernelCase):
    """One launch of channel_mix on all channels, or with `variant` "pair" on x and rest, half of the channels each.

    "squeeze" centers x, and reads it with a quarter of the channels, two pixels apart, of which no access is wide.
    """

    variant: str = "whole"

    @property
    def registers(self) -> int:
        return REGISTERS_MATRIX if self.kernel == "mix backward" else super().registers

    @property
    def shared(self) -> int:
        """The operands of one product: 16 rows of up to 256 pixels, or 16 columns of up to 64, 8 bytes each, twice."""
        return 36 * 1024

    @property
    def narrow(self) -> int:
        """Forward shifts, log_dets and matrices, in backward 16 rows of the small tiles or the gradient of the shift.

        One narrow main array would make 8 to 16 of them forward and 4 in backward, beside these.
        """
        return 4 if self.kernel == "mix backward" else 12

    @property
    def wide(self) -> bool:
        """Whether a thread has 128 bits of neighbours: of a row's pixels, or where they are innermost, of channels."""
        channels, *space = self.shape[1:]
        held = 4 if self.kernel == "mix backward" or channels <= 2 else 8
        across = channels // 2 if self.variant == "pair" else channels
        neighbours = math.prod(space) if space and self.layout != "channels_last" else across
        held_bytes = math.gcd(neighbours, held) * getattr(torch, self.dtype).itemsize
        return self.layout != "strided" and self.variant != "squeeze" and held_bytes >= 16

    def elements(self, arguments: dict) -> int:
        return self.shape[1] * arguments["BLOCK_PIXELS"]

    def tile(self, arguments: dict) -> str:
        return f"{arguments['BLOCK_CHANNELS']}x{arguments['BLOCK_PIXELS']}"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("grad_z_ptr", "x_ptr") if self.kernel == "mix backward" else ("x_ptr",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr",) if self.kernel == "mix backward" else ("z_ptr",)

    def call(self) -> None:
        rows, channels, *space = self.shape
        split = channels // 2 if self.variant == "pair" else 0
        x = self.empty(rows, split or channels, *space)
        rest = self.empty(rows, channels - split, *space) if split else None
        matrix, vector = self.reduced(channels, channels), self.reduced(channels)
        given, center, squeezing = x, None, 0
        if self.variant == "squeeze":
            given, center, squeezing = self.empty(rows, channels // 4, *(2 * size for size in space)), vector, 1
        if self.kernel == "mix backward":
            channel_mix_backward_cuda(x, rest, given, rest, matrix, center, squeezing)
        else:
            channel_mix_cuda(given, rest, matrix, center, vector, self.reduced(), self.reduced(rows), split, squeezing)


_ALL_MAPS = (*SCALE_MAPS, "sigmoid eps=0", "tanh gain")
_IMAGE = (256, 32, 14, 14)
CASES = (
    *(CouplingCase(kernel, variant) for variant in _ALL_MAPS for kernel in ("forward", "inverse", "backward")
      if (kernel, variant) != ("backward", "additive")),  # its gradients are views
    *(CouplingCase(kernel, variant, dtype, parameters=parameters)
      for dtype, parameters in (("float64", None), ("bfloat16", None), ("float16", None), ("float32", "bfloat16"))
      for kernel, variant in (("forward", "sigmoid"), ("backward", "sigmoid"), ("backward", "tanh gain"))),
    *(CouplingCase(kernel, "sigmoid", dtype, shape, layout)
      for shape, layout in (((65536, 128), "halves"), ((64, 6144), "halves"), (_IMAGE, "halves"), (_IMAGE, "all"))
      for dtype in ("float32", "bfloat16") for kernel in ("forward", "backward")),
    *(CouplingCase(kernel, "sigmoid", shape=_IMAGE, layout=layout)
      for layout in ("interleaved", "mask", "channels_last", "strided") for kernel in ("forward", "backward")),
    *(CouplingCase("backward", "clamp_tanh", shift_first=shift_first, from_input=from_input)
      for shift_first, from_input in ((False, True), (True, False), (True, True))),
    *(ElementwiseCase(f"{op} {kernel}", dtype=dtype) for op in _ELEMENTWISE
      for kernel in ("forward", "inverse", "backward", "inverse backward")
      for dtype in ("float32", "float64", "bfloat16")),
    *(ElementwiseCase(f"{op} {kernel}", shape=_IMAGE, layout="channels_last") for op in _ELEMENTWISE
      for kernel in ("forward", "backward")),
    *(NoiseCase("uniform_noise", dtype=dtype, shape=shape)
      for dtype in ("float32", "float64") for shape in ((65536, 784), (256, 784))),
    *(NoiseCase("dequantize_logit", variant, dtype)
      for variant in ("keyed", "middle") for dtype in ("float32", "float64", "bfloat16")),
    NoiseCase("dequantize_logit", shape=(64, 12288)),
    *(ActNormCase(f"act_norm {kernel}", dtype=dtype, from_input=kernel == "backward" and dtype == "bfloat16")
      for kernel in ("forward", "inverse", "backward") for dtype in ("float32", "float64", "bfloat16")),
    *(ActNormCase(f"act_norm {kernel}", dtype=dtype, shape=shape, layout=layout)
      for shape, layout in ((_IMAGE, "contiguous"), (_IMAGE, "channels_last"), ((256, 12, 128, 128), "contiguous"))
      for dtype in ("float32", "bfloat16") for kernel in ("forward", "backward")),
    *(ActNormCase(f"act_norm {kernel}", variant="shift last", from_input=kernel == "backward")
      for kernel in ("forward", "backward")),
    *(MixCase(f"mix {kernel}", dtype=dtype, shape=(rows, channels, *space)) for kernel in ("forward", "backward")
      for dtype in ("float32", "bfloat16", "float64") for channels in (1, 2, 4, 8, 12, 24, 48, 64)
      for rows, space in ((65536, ()), (256, (16, 16)))),
    *(MixCase(f"mix {kernel}", "pair", dtype, (256, channels, *space), layout) for kernel in ("forward", "backward")
      for dtype, channels, space, layout in (
          ("float32", 24, (14, 14), "contiguous"), ("float32", 64, (14, 14), "contiguous"),
          ("float32", 24, (14, 14), "channels_last"), ("float32", 64, (14, 14), "channels_last"),
          ("bfloat16", 24, (16, 16), "contiguous"), ("float32", 24, (7, 7), "contiguous"),
          ("float32", 24, (), "strided"))),
    *(MixCase(f"mix {kernel}", "squeeze", shape=(256, channels, 14, 14)) for kernel in ("forward", "backward")
      for channels in (4, 64)),
)
