"""Which backend serves a call: the native library, Triton, CUDA, or the reference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_forced: str | None = None


def forced() -> str | None:
    """The backend that the user asked for, or None for the automatic choice."""
    return _forced


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend inside the block: "auto", "reference", "cpu", "triton" or "cuda"."""
    global _forced
    before, _forced = _forced, None if name == "auto" else name
    try:
        yield
    finally:
        _forced = before


def require(op: str, backend: str, device_type: str) -> None:
    """Raises RuntimeError when `backend` cannot serve `op` on this kind of device."""
    raise RuntimeError(f"{op}: backend {backend!r} cannot serve a call on {device_type}")


def triton_serves(op: str) -> bool:
    """Whether the Triton kernel of `op` serves CUDA tensors now: proved by a record, or forced."""
    return _forced == "triton"


def triton_launcher(name: str) -> Callable:
    """The launcher of that name in fastflow.kernels."""
    from fastflow import kernels

    return getattr(kernels, name)
