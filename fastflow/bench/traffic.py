"""How many bytes a call moves if each operation that it dispatches reads its inputs and writes its outputs once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations that use no value of their first argument
_OVERWRITE = ("copy_", "fill_", "zero_")


def traffic(call: Callable[[], object]) -> int:
    """Bytes read and written by the operations of one call; views and bare allocations move none."""
    # The engine would run a CUDA tensor's backward in a thread of its own, where the mode is not active.
    with torch.autograd.set_multithreading_enabled(False), _Count() as count:
        call()
    return count.bytes


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.bytes += _moved(func, (args, kwargs or {}), outputs)
        return outputs


def _moved(func, given: object, outputs: object) -> int:
    name, mutates = func.overloadpacket.__name__, func._schema.is_mutable
    read, written = list(_tensors(given)), list(_tensors(outputs))
    memory = {tensor.untyped_storage()._cdata for tensor in read}
    is_view = written and all(tensor.untyped_storage()._cdata in memory for tensor in written)
    if "empty" in name or (is_view and not mutates):
        return 0
    if name.startswith("new_") or name.endswith("_like"):
        read = []
    return sum(map(_bytes, read[name in _OVERWRITE:])) + sum(map(_bytes, written))


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Of the elements in memory: an expanded one counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()
