"""What names mean at a place in the code: tensors in memory, lanes, values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kir.backends.llvm.affine import coefficient, names, reads_memory
from kir.backends.llvm.builder import V
from kir.dtypes import DType
from kir.ir import Expr, Read, Store


@dataclass(frozen=True)
class Tensor:
    """A tensor in memory. `lanes` > 0: each lane of the tile has its own, lanes contiguous.
    `param`: it is an input or an output.
    `outer`: it stands outside the parallel region, so several threads may see it."""

    pointer: V
    type: DType
    shape: tuple[Expr, ...]
    padded: bool = False
    lanes: int = 0
    outer: bool = False
    output: bool = False
    param: bool = False


@dataclass(frozen=True)
class Lane:
    """The tile axis whose iterations are the lanes of vectors: `start` + 0, 1, ..., count - 1."""

    name: str
    start: V
    count: int


@dataclass(frozen=True)
class Address:
    """`uniform`: one element for all lanes; `row`: lanes side by side; `spread`: a pointer each."""

    kind: Literal["uniform", "row", "spread"]
    pointer: V


@dataclass
class Scope:
    """What names mean at the current place."""

    values: dict[str, V] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    extents: dict[str, int | None] = field(default_factory=dict)
    """Of the loops around; None where not constant."""
    grid: tuple[str, ...] = ()
    """Axes of the parallel region around."""
    factors: dict[str, int] = field(default_factory=dict)
    lane: Lane | None = None
    mask: V | None = None
    paired: bool = False
    """Whether the lanes stand in pairs (see `paired`)."""
    stream: int = 0
    """Bytes to which rows of outputs are aligned whose stores bypass the cache; 0: none does."""
    ahead: int = 0
    """Under `hint(ahead = 1)`: reads also prefetch for the grid's next iteration, where that is at
    most so many bytes away."""
    turned: dict[Read, tuple[str, list[V]]] = field(default_factory=dict)
    """Reads that were made for all values of an axis at once: the axis, the bits for each."""


def exclusive(scope: Scope, s: Store) -> bool:
    """Whether no two iterations of the parallel grid can update the same element."""
    return all(
        scope.extents.get(axis) == 1 or any(_separates(scope, i, axis) for i in s.indices)
        for axis in scope.grid
    )


def _separates(scope: Scope, index: Expr, axis: str) -> bool:
    """Whether two values of `axis` always give two values of `index`: its step exceeds what
    all inner indices together can add, and no other axis of the grid takes part."""
    if reads_memory(index):
        return False
    own = coefficient(index, axis)
    if not own:
        return False
    reach = 0
    for name in names(index) - {axis}:
        is_lane = scope.lane is not None and scope.lane.name == name
        if name not in scope.extents and not is_lane:
            continue  # a dim or an index of a loop around the grid: fixed
        extent, step = scope.extents.get(name), coefficient(index, name)
        if name in scope.grid or extent is None or step is None:
            return False
        reach += abs(step) * (extent - 1)
    return reach < abs(own)
