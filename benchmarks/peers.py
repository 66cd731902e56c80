"""The peers: PyTorch eager, torch.compile (default and max-autotune), JAX."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

PEERS = ("eager", "compile", "max-autotune", "jax")
MODES = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True)
class Peer:
    """A peer's function of no arguments that gives its outputs, and the seconds of its first
    call (compilation included); or why there is none."""

    call: Callable[[], Any] | None
    first: float = 0.0
    why: str = ""


@contextlib.contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """PyTorch with that many threads, and no gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def eager(function: Callable[..., Any], tensors: Sequence[Any]) -> Peer:
    start = time.perf_counter()
    function(*tensors)
    return Peer(lambda: function(*tensors), time.perf_counter() - start)


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
    import torch._dynamo

    torch._dynamo.reset()
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
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with threads_of(1):
        compiled(lambda x: x.relu() + 1, [torch.ones(1000)], "compile")


def jax_missing() -> str:
    """Why there is no JAX here; empty where there is one."""
    try:
        import jax  # noqa: F401
    except ImportError:
        return "jax is not installed"
    return ""


def make(name: str, function: Callable[..., Any], tensors: Sequence[Any]) -> Peer:
    if name == "eager":
        return eager(function, tensors)
    if name == "jax":
        return Peer(None, why=jax_missing() or "no jax functions")
    return compiled(function, tensors, name)
