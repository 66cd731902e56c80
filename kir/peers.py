"""The peers that kernels are timed against: PyTorch eager, torch.compile, JAX."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kir.errors import MissingExtraError

PEERS = ("eager", "compile", "max-autotune", "jax")
MODES = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True)
class Peer:
    """A peer's function of no arguments that gives its outputs, and the seconds of its first
    call (compilation included, 0 where there is none); or why there is no such peer."""

    call: Callable[[], Any] | None
    first: float = 0.0
    why: str = ""


def require_torch() -> Any:
    """The module `torch`; MissingExtraError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            "peers are PyTorch functions, and torch is not installed",
            hint="pip install 'kir[torch]'",
        ) from None
    return torch


@contextlib.contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """PyTorch with that many threads, and no gradients."""
    torch = require_torch()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def eager(function: Callable[..., Any], tensors: Sequence[Any]) -> Peer:
    return Peer(lambda: function(*tensors))


def in_f32(function: Callable[..., Any], tensors: Sequence[Any]) -> Peer:
    """Eager on operands converted to f32, the results converted back: many times faster than
    PyTorch's own bf16 products where the CPU has no bf16 instructions."""
    kind = tensors[0].dtype

    def call() -> Any:
        found = function(*(t.float() if t.dtype == kind else t for t in tensors))
        return tuple(t.to(kind) for t in found) if isinstance(found, tuple) else found.to(kind)

    return eager(call, ())


def compiled(function: Callable[..., Any], tensors: Sequence[Any], mode: str) -> Peer:
    """torch.compile for these shapes alone. What it refuses is no peer, and it says why."""
    torch = require_torch()
    importlib.import_module("torch._dynamo").reset()
    made = torch.compile(function, dynamic=False, mode=MODES[mode])
    start = time.perf_counter()
    try:
        made(*tensors)
    except (RuntimeError, NotImplementedError) as error:  # dynamo's and inductor's are such
        return Peer(None, why=f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200])
    return Peer(lambda: made(*tensors), time.perf_counter() - start)


def prepare(folder: str) -> None:
    """Inductor's settings: code under `folder`, no worker processes beside the timing, and one
    compilation beforehand, since the first builds headers that all others use."""
    torch = require_torch()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with threads_of(1):
        compiled(lambda x: x.relu() + 1, [torch.ones(1000)], "compile")


def make(name: str, function: Callable[..., Any], tensors: Sequence[Any]) -> Peer:
    """The peer `name` of PEERS for a PyTorch function of these tensors."""
    if name == "eager":
        return eager(function, tensors)
    return compiled(function, tensors, name)


def tensor_of(array: Any) -> Any:
    """A tensor on the memory of a row-major NumPy array. MissingExtraError without PyTorch."""
    torch = require_torch()
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    if name.startswith("float8"):
        kinds = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
        return torch.from_numpy(array.view("int8")).view(kinds[name])
    return torch.from_numpy(array)


def distance(tensor: Any, array: Any) -> float:
    """The greatest difference of two results over one plus the root mean square of the first;
    infinite where shapes differ or only one is NaN."""
    torch = require_torch()
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != array.shape:
        return float("inf")
    one, two = tensor.double(), tensor_of(array).double()
    if one.numel() == 0:
        return 0.0
    if not bool((one.isnan() == two.isnan()).all()):
        return float("inf")
    difference = (one - two).where(one != two, torch.zeros(())).nan_to_num(0.0, posinf=float("inf"))
    scale = 1.0 + float(one.nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt())
    return float(difference.abs().max()) / scale
