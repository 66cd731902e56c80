"""Tensors in memory, and how index forms reach into them.

The evaluator works on a *frame*: a list of array axes, one per loop whose iterations run side by
side. The axis at position p of the frame is the array axis -1 - p, so that values computed further
out broadcast against those computed further in with no reshaping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kir.dtypes import DType
from kir.interpret.affine import Affine
from kir.interpret.domain import Array, Value


@dataclass(frozen=True)
class Tensor:
    """Storage of shape `private + shape`: one copy for each point of the frame where it began.

    A plane of an input may be 0-d where it is the same everywhere (it has no error).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    private: tuple[int, ...]
    planes: Value
    constant: bool = False
    """Whether it is an input, which nothing writes."""


@dataclass(frozen=True)
class Lane:
    """An index variable that is an array axis: `offset + 0, 1, ...` at `position`."""

    position: int
    offset: int


Index = int | Lane
"""What an index variable is bound to: one number, or an axis of the frame."""


@dataclass(frozen=True)
class Strided:
    """An affine index bound to a frame: `constant + sum(step * lane)` by position."""

    constant: int
    steps: Mapping[int, int]

    def span(self, frame: Sequence[int]) -> tuple[int, int]:
        low = high = self.constant
        for position, step in self.steps.items():
            reach = step * (frame[position] - 1)
            low, high = low + min(0, reach), high + max(0, reach)
        return low, high


def bind(form: Affine, env: Mapping[str, Index]) -> Strided:
    constant, steps = form.constant, dict[int, int]()
    for name, c in form.terms:
        index = env[name]
        if isinstance(index, Lane):
            constant += c * index.offset
            steps[index.position] = steps.get(index.position, 0) + c
        else:
            constant += c * index
    return Strided(constant, {p: s for p, s in steps.items() if s})


def layout(tensor: Tensor, indices: Sequence[Strided]) -> Strided:
    """The flat place in the tensor's storage, in elements."""
    steps: dict[int, int] = {}
    constant, stride = 0, 1
    for n, index in zip(reversed(tensor.shape), reversed(indices), strict=True):
        constant += index.constant * stride
        for position, step in index.steps.items():
            steps[position] = steps.get(position, 0) + step * stride
        stride *= n
    for position, n in enumerate(reversed(tensor.private)):
        if n > 1:
            steps[position] = steps.get(position, 0) + stride
        stride *= n
    return Strided(constant, {p: s for p, s in steps.items() if s})


def view(plane: Array, place: Strided, frame: Sequence[int]) -> Array:
    """The elements at `place` as an array over the frame; axes without a step have size 1."""
    if not plane.ndim:
        return plane
    depth = max(place.steps, default=-1) + 1
    shape = tuple(frame[p] if p in place.steps else 1 for p in reversed(range(depth)))
    size = plane.itemsize
    strides = tuple(place.steps.get(p, 0) * size for p in reversed(range(depth)))
    flat = plane if plane.flags.c_contiguous else plane.reshape(-1)
    if plane.dtype.isbuiltin == 1:
        return np.ndarray(shape, plane.dtype, flat, place.constant * size, strides)
    bits = as_strided(flat.reshape(-1)[place.constant :].view(f"u{size}"), shape, strides)
    return bits.view(plane.dtype)  # buffers are of NumPy's own dtypes only


def distinct(place: Strided, frame: Sequence[int]) -> bool:
    """Whether no two points of the frame, axes without a step aside, share an element."""
    spans = sorted(
        (abs(s), abs(s) * (frame[p] - 1)) for p, s in place.steps.items() if frame[p] > 1
    )
    reach = 0
    for step, span in spans:
        if step <= reach:
            return False
        reach += span
    return True


def bordered(tensor: Tensor, spans: Sequence[tuple[int, int]], fill: Value) -> Tensor | None:
    """The tensor within a border of `fill` (one element per plane) that holds these index spans.

    Index 0 moves to `-min(low, 0)`. None where the border would be wasteful.
    """
    starts = [min(low, 0) for low, _ in spans]
    shape = [
        max(high + 1, n) - start
        for n, (_, high), start in zip(tensor.shape, spans, starts, strict=True)
    ]
    if tensor.private or math.prod(shape) > 4 * math.prod(tensor.shape) + (1 << 16):
        return None
    window = tuple(slice(-start, -start + n) for start, n in zip(starts, tensor.shape, strict=True))
    planes: list[Array] = []
    for plane, value in zip(tensor.planes, fill, strict=True):
        if not plane.ndim and tensor.shape and plane == value:
            planes.append(plane)
            continue
        wide = np.full(shape, value.reshape(()), plane.dtype)
        wide[window] = plane
        planes.append(wide)
    return Tensor(tensor.name, tensor.dtype, tuple(shape), (), tuple(planes))


def lanes(frame: Sequence[int], position: int, offset: int = 0) -> Array:
    """The index values of one axis of the frame."""
    values = np.arange(offset, offset + frame[position], dtype=np.int64)
    return values.reshape(-1, *(1,) * position)


def places(tensor: Tensor, indices: Sequence[Array], frame: Sequence[int]) -> Array:
    """Flat places of elements given by arrays of in-range indices."""
    total: Array = np.zeros((), np.int64)
    for position in reversed(range(len(tensor.private))):
        total = total * tensor.private[-1 - position] + lanes(frame, position)
    for n, index in zip(tensor.shape, indices, strict=True):
        total = total * n + index
    return total


def in_order(array: Array, frame: Sequence[int]) -> Array:
    """`array` over the whole frame as a flat one, in the order of the loops' iterations."""
    whole = np.broadcast_to(array, tuple(reversed(frame)))
    return whole.transpose().reshape(-1)


def inside(indices: Sequence[Strided], shape: Sequence[int], frame: Sequence[int]) -> bool:
    """Whether all the places that affine indices reach over the frame are within `shape`."""
    for index, n in zip(indices, shape, strict=True):
        low, high = index.span(frame)
        if low < 0 or high >= n:
            return False
    return True


def outside_of(indices: Sequence[Array], shape: Sequence[int]) -> Array:
    """Where one of the arrays of indices is out of range."""
    outside: Array = np.zeros((), np.bool_)
    for index, n in zip(indices, shape, strict=True):
        outside = outside | (index < 0) | (index >= n)
    return outside


def kept(array: Array, free: list[int]) -> Array:
    """`array` over the frame without the axes at positions `free`, along which it has size 1."""
    return array.reshape([n for a, n in enumerate(array.shape) if array.ndim - 1 - a not in free])


def greatest(extent: int | Array) -> tuple[int, bool]:
    """The greatest extent of all lanes, and whether it varies."""
    if isinstance(extent, int):
        return extent, False
    return int(extent.max(initial=0)), True
