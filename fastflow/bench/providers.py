"""Who is measured: this library, the shortest idiomatic PyTorch, its compiled forms, other libraries' arithmetic."""

import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from fastflow.bench import affine_coupling, gaussian, plain_ops
from fastflow.bench.cases import Case
from fastflow.bench.inputs import Inputs

RIVALS = ("compile", "aoti", "eager", "normflows", "nflows", "gemm-compile", "gemm", "mixture", "keops")
DEFAULT_RIVALS = tuple(name for name in RIVALS if name != "aoti")
CUDA_RIVALS = ("compile", "eager", "gemm-compile", "gemm", "mixture")
# {provider: whose call it compiles}
_COMPILED = {"compile": "eager", "gemm-compile": "gemm"}
_OPS = {"affine_coupling": affine_coupling.PROVIDERS, **gaussian.PROVIDERS, **plain_ops.PROVIDERS}


def of_op(op: str, names: Iterable[str]) -> list[str]:
    """Those providers that compute the op at all."""
    calls = _OPS[op].calls
    return [name for name in names if name == "aoti" or _COMPILED.get(name, name) in calls]


def serves(provider: str, case: Case) -> bool:
    """Whether this provider computes the case at all."""
    if provider == "aoti" and case.trains:
        return False
    limited = _OPS[case.op].limited
    return bool(of_op(case.op, [provider])) and case.variant in limited.get(provider, (case.variant,))


def prepare(provider: str, case: Case, device: str = "cpu") -> Callable[[], tuple[Tensor, ...]]:
    """The provider's call on this case, without arguments, compiled for the present number of threads.

    forward and inverse: the op's outputs, nothing recorded; otherwise the gradients of every input. Raises ValueError
    where the provider is not to be run on the case, or is not installed.
    """
    op = _OPS[case.op]
    if reason := op.refuses(provider, case):
        raise ValueError(reason)
    given = op.inputs(case, provider, device)
    if provider in _COMPILED:
        call = _compiled(op.calls[_COMPILED[provider]](case, given))
    elif provider == "aoti":
        call = _ahead_of_time(op.calls["eager"](case, given), given)
    else:
        call = op.calls[provider](case, given)
    if not case.trains:
        return partial(call, *given.arguments)
    leaves, grads = given.tracked(), given.grads
    if case.direction == "backward":
        # What the compiler's backward may overwrite by default is needed again here.
        with functorch_config.patch(donated_buffer=False):
            outputs = call(*given.arguments)[: len(grads)]
            torch.autograd.grad(outputs, leaves, grads, retain_graph=True)  # the compiler compiles it now
        return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)

    def step():
        return torch.autograd.grad(call(*given.arguments)[: len(grads)], leaves, grads)

    return step


def _compiled(call: Callable) -> Callable:
    # One code object serves every case: without this, the shapes of the last case count against the recompile limit.
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, dynamic=False)


def _ahead_of_time(call: Callable, given: Inputs) -> Callable:
    class Module(torch.nn.Module):
        forward = staticmethod(call)

    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own, of its own classes
        program = torch.export.export(Module(), given.arguments)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "case.pt2"))
        return torch._inductor.aoti_load_package(package)
