"""A call on arrays of known shapes: what remains of it is to make the outputs and to jump.

Nothing of the compiler is needed here, so that code from the cache runs without it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from kir.backends.cpu.native import Code
from kir.errors import UsageError

NDArray = np.ndarray[Any, Any]
ALIGNED_FROM = 1 << 15
"""Bytes of an output from which on it gets memory aligned to cache lines."""
MAX_THREADS = 4096


class Spec:
    """An array that a call expects."""

    __slots__ = ("dtype", "output", "shape")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], output: bool) -> None:
        self.dtype, self.shape, self.output = dtype, shape, output


class Call:
    """`specs` are the arrays, inputs first, `dims` the dims in order, `threads` as the entry takes
    it. From its second run on it has a built-in function of its own, `direct`."""

    def __init__(
        self, code: Code, symbol: str, specs: Sequence[Spec], dims: Sequence[int], threads: int
    ) -> None:
        self.code, self.symbol, self.specs, self.dims = code, symbol, tuple(specs), tuple(dims)
        self.threads = threads
        self.outputs = [s for s in specs if s.output]
        self._makers = [_maker(s.shape, s.dtype) for s in self.outputs]
        self._entry = code.address(symbol)
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(self._entry)
        self._runs = 0
        self.direct: Callable[..., bool] | None = None

    def allocate(self) -> list[NDArray]:
        """Fresh arrays for the outputs."""
        return [make() for make in self._makers]

    def fits(self, arrays: Sequence[NDArray]) -> bool:
        """Whether inputs and outputs are as the specs say, and no output shares memory."""
        if len(arrays) != len(self.specs):
            return False
        for k, (a, s) in enumerate(zip(arrays, self.specs)):
            if a.__class__ is not np.ndarray or a.dtype != s.dtype or a.shape != s.shape:
                return False
            if not a.flags.c_contiguous or (s.output and not a.flags.writeable):
                return False
            if s.output and any(np.may_share_memory(a, other) for other in arrays[:k]):
                return False
        return True

    def run(self, arrays: Sequence[NDArray], cell: NDArray | None = None) -> None:
        """On inputs and outputs that are known to be as `specs` say. `cell` is the error cell of
        a checked build."""
        slots = [a.ctypes.data for a in arrays]
        if cell is not None:
            slots.append(cell.ctypes.data)
        slots += [*self.dims, self.threads]
        self._function((ctypes.c_int64 * len(slots))(*slots))
        self._runs += 1
        if self._runs == 2 and cell is None:
            from kir.backends.cpu.direct import direct

            self.direct = direct(self._entry, self.specs, (*self.dims, self.threads))


def _maker(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray]:
    """What gives fresh memory; where it is large, aligned to cache lines, as `malloc`'s is not."""
    size = math.prod(shape) * dtype.itemsize
    return partial(np.empty if size < ALIGNED_FROM else aligned, shape, dtype)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray:
    """Fresh memory, of any content, that begins where a cache line does."""
    raw = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    return np.ndarray(shape, dtype, raw, -raw.ctypes.data % 64)


def check_threads(threads: int) -> int:
    """UsageError for a number of threads that is none."""
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise UsageError(f"threads is {threads!r}", hint="0 leaves it to OMP_NUM_THREADS")
    if abs(threads) > MAX_THREADS:
        raise UsageError(f"{threads} threads are too many", hint=f"at most {MAX_THREADS}")
    return threads
