"""How many kernels does the public SCNF code launch? `python benchmarks/scnf_kernels.py [--device cuda]`.

Counted are the ATen operators below autograd that compute or copy, which are what launches a kernel on a GPU. Left out
are views, allocations and reads by the host (`_local_scalar_dense`). One operator may launch several kernels (LU,
cuDNN's convolution and its bias); on a CUDA device the kernels themselves are counted too. The forward count starts at
the images (trunk) or at [B, 196] latents and labels (one pass of the head) and ends at log_det and z; the backward
count is of the gradient of their plain sum for every parameter, and for the head's input.
"""

import argparse
from collections.abc import Callable

import torch
from scnf_reference import SCNFReference
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

PUBLISHED = {"trunk": (1279, 1317), "head": (692, 735)}  # (forward, backward) of the public code


class OperatorCount(TorchDispatchMode):
    """Counts the operators inside the block, as this file's header says."""

    count = 0
    _NO_KERNEL = ("aten::_local_scalar_dense", "aten::_unsafe_view", "aten::empty", "aten::new_empty")

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not operator.is_view and not operator._schema.name.startswith(self._NO_KERNEL)
        return operator(*args, **(kwargs or {}))


def count_operators(call: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]) -> tuple[int, int]:
    """(forward, backward) operators of call() and of the gradient of its outputs' sum for `inputs`."""
    with OperatorCount() as forward:
        outputs = call()
    ones = [torch.ones_like(output) for output in outputs]
    with OperatorCount() as backward:
        torch.autograd.grad(outputs, inputs, ones)
    return forward.count, backward.count


def count_kernels(call: Callable[[], tuple[Tensor, ...]], inputs: list[Tensor]) -> tuple[int, int]:
    """(forward, backward) kernels that these launch on a CUDA device, by its profiler."""
    def launched(function: Callable) -> tuple[object, int]:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            result = function()
            torch.cuda.synchronize()
        events = recorded.profiler.kineto_results.events()
        return result, sum(event.device_type() == torch.autograd.DeviceType.CUDA and
                           not event.name().startswith(("Memcpy", "Memset")) for event in events)

    outputs, forward = launched(call)
    ones = [torch.ones_like(output) for output in outputs]
    return forward, launched(lambda: torch.autograd.grad(outputs, inputs, ones))[1]


def counted_calls(model: SCNFReference, rows: int = 2) -> dict[str, tuple[Callable, list[Tensor]]]:
    """The trunk and one pass of the head: what is called, and what its outputs are differentiated for."""
    device = model.prior.deep_prior.mean.device
    images = torch.rand(rows, 1, 28, 28, device=device)
    labels = torch.arange(rows, device=device)
    z = torch.randn(rows, model.prior.features, device=device, requires_grad=True)
    return {
        "trunk": (lambda: model.flow(images), _trained(model.flow)),
        "head": (lambda: model.prior.flow(z, labels), [z, *_trained(model.prior.flow)]),
    }


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    for part, (call, inputs) in counted_calls(SCNFReference().to(options.device)).items():
        operators = count_operators(call, inputs)
        print(f"{part:5s}  {operators[0]} operators forward, {operators[1]} backward; public code {PUBLISHED[part]}")
        if options.device == "cuda":
            print(f"       {count_kernels(call, inputs)} kernels, forward and backward")


if __name__ == "__main__":
    main()
