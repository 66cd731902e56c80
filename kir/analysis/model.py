"""What a kernel touches: every access with the loops, masks and guards around it.

Guards are the `where` of loops and reductions and the conditions of `if`. A `select` is none:
both its branches are evaluated everywhere. A read with a fill touches memory only in bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from kir.errors import UnknownNameError
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    children,
    const,
    substitute,
    walk,
)
from kir.simplify import Interval, simplify

Role = Literal["input", "output", "buffer", "definition"]
Kind = Literal["read", "write", "update"]


@dataclass(frozen=True, eq=False)
class AxisFrame:
    """An axis in scope: of a loop, a definition or a reduction (`loop` is None for the latter)."""

    name: str
    extent: Expr
    number: int
    loop: Loop | None = None


@dataclass(frozen=True, eq=False)
class Guard:
    """A condition that holds where it is in scope."""

    condition: Expr


Frame = AxisFrame | Guard
Frames = tuple[Frame, ...]


@dataclass(frozen=True, eq=False)
class Decl:
    """A tensor: where it is declared (`frames`) decides which iterations share it."""

    name: str
    shape: tuple[Expr, ...]
    role: Role
    frames: Frames
    node: Node
    filled: bool = False
    """Whether all its elements have a value from the start (inputs, buffers with a value)."""


@dataclass(frozen=True, eq=False)
class Access:
    """One place in the text that reads, writes or updates elements of a tensor.

    `position` orders the accesses of one iteration: a read of a statement before its write.
    """

    decl: Decl
    kind: Kind
    indices: tuple[Expr, ...]
    frames: Frames
    node: Node
    position: tuple[int, ...]
    op: str | None = None
    padded: bool = False

    @property
    def axes(self) -> tuple[AxisFrame, ...]:
        return tuple(f for f in self.frames if isinstance(f, AxisFrame))

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(f.loop for f in self.axes if f.loop is not None)


@dataclass(eq=False)
class Model:
    """The accesses of a kernel, in the order of the text, and its tensors."""

    kernel: Kernel
    values: dict[str, Expr]
    """The compile-time parameters, as the constants they default to."""
    decls: list[Decl] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    loops: list[tuple[AxisFrame, Frames]] = field(default_factory=list)
    """Every loop, with what is around it."""
    depths: dict[AxisFrame, int] = field(default_factory=dict)
    """For each loop, where the index of a statement of its body stands in `Access.position`."""
    prepared: dict[int, tuple[Expr, Expr]] = field(default_factory=dict)
    products: dict[Expr, str] = field(default_factory=dict)
    """Names in the sets for what is made of dims alone and yet not affine, such as `M*N`."""

    def prepare(self, e: Expr) -> Expr:
        """`e` with parameters as constants, simplified."""
        found = self.prepared.get(id(e))
        if found is None or found[0] is not e:
            found = (e, simplify(substitute(e, self.values)))
            self.prepared[id(e)] = found
        return found[1]

    def ranges(self, axes: Iterable[AxisFrame]) -> dict[str, Interval]:
        """Bounds of the indices of these axes; those of an empty loop are as if it ran once."""
        found: dict[str, Interval] = {}
        for f in axes:
            e = self.prepare(f.extent)
            found[f.name] = (0, max(int(e.value) - 1, 0) if isinstance(e, Const) else None)
        return found

    @cached_property
    def mutable(self) -> frozenset[str]:
        """Tensors whose elements may change: one read of them says nothing of the next."""
        return frozenset(d.name for d in self.decls if d.role in ("output", "buffer"))


@lru_cache(maxsize=64)
def _model_of(key: _ById) -> Model:
    return _Builder(key.kernel).model


class _ById:
    """A kernel as a cache key: the very object, since errors point at its nodes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __hash__(self) -> int:
        return id(self.kernel)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.kernel is self.kernel


def model_of(kernel: Kernel) -> Model:
    """The accesses of `kernel` (cached on the object)."""
    return _model_of(_ById(kernel))


class _Builder:
    def __init__(self, kernel: Kernel) -> None:
        values: dict[str, Expr] = {
            d.name: const(d.default) for d in kernel.dims if d.default is not None
        }
        self.model = Model(kernel, values)
        self.number = 0
        self.recurrent = any(
            isinstance(n, Define) and len(n.axes) < len(n.dims) for n in walk(kernel)
        )
        scope: dict[str, Decl] = {}
        for p in kernel.inputs:
            scope[p.name] = self.declare(Decl(p.name, p.shape, "input", (), p, True))
        for p in kernel.outputs:
            scope[p.name] = self.declare(Decl(p.name, p.shape, "output", (), p))
        self.block(kernel.body, (), scope, ())

    def declare(self, decl: Decl) -> Decl:
        self.model.decls.append(decl)
        return decl

    def axis(self, axis: Axis, loop: Loop | None = None) -> AxisFrame:
        self.number += 1
        return AxisFrame(axis.name, axis.extent, self.number, loop)

    def block(
        self, body: tuple[Stmt, ...], frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]
    ) -> None:
        scope = dict(scope)
        for n, stmt in enumerate(body):
            self.stmt(stmt, frames, scope, (*at, n))

    def stmt(self, s: Stmt, frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]) -> None:
        if isinstance(s, Loop):
            self.loop(s, frames, scope, at)
        elif isinstance(s, If):
            self.reads((s.condition,), frames, scope, at)
            self.block(s.body, (*frames, Guard(s.condition)), scope, at)
        elif isinstance(s, Define):
            self.define(s, frames, scope, at)
        elif isinstance(s, Buffer):
            self.reads((*s.shape, *([s.init] if s.init else [])), frames, scope, at)
            filled = s.init is not None
            scope[s.name] = self.declare(Decl(s.name, s.shape, "buffer", frames, s, filled))
        elif isinstance(s, Store):
            self.reads((*s.indices, s.value), frames, scope, (*at, 0))
            decl = self.find(s.target, scope, s)
            kind: Kind = "update" if s.op else "write"
            self.model.accesses.append(Access(decl, kind, s.indices, frames, s, (*at, 1), s.op))

    def loop(self, s: Loop, frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]) -> None:
        self.reads((s.axis.extent,), frames, scope, at)
        self.recurrences(s, frames, scope)
        axis = self.axis(s.axis, s)
        self.model.loops.append((axis, frames))
        self.model.depths[axis] = len(at)
        inner: Frames = (*frames, axis)
        self.reads(s.where, inner, scope, at)
        self.block(s.body, (*inner, *map(Guard, s.where)), scope, at)

    def recurrences(self, loop: Loop, frames: Frames, scope: dict[str, Decl]) -> None:
        """Declare outside of `loop` what is defined inside with a slice for each iteration."""
        if not self.recurrent:
            return
        extents = {n.axis.name: n.axis.extent for n in walk(loop) if isinstance(n, Loop)}
        for n in walk(loop):
            if not isinstance(n, Define) or n.name in scope:
                continue
            if any(isinstance(d, Var) and d.name == loop.axis.name for d in n.dims):
                shape = tuple(
                    d.extent if isinstance(d, Axis) else extents.get(d.name, d) for d in n.dims
                )
                scope[n.name] = self.declare(Decl(n.name, shape, "definition", frames, n))

    def define(
        self, s: Define, frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]
    ) -> None:
        self.reads([a.extent for a in s.axes], frames, scope, at)
        inner: Frames = (*frames, *(self.axis(a) for a in s.axes))
        self.reads((s.value,), inner, scope, (*at, 0))
        if s.name not in scope:
            shape = tuple(a.extent for a in s.axes)
            scope[s.name] = self.declare(Decl(s.name, shape, "definition", frames, s, True))
        indices = tuple(Var(d.name) for d in s.dims)
        decl = scope[s.name]
        self.model.accesses.append(Access(decl, "write", indices, inner, s, (*at, 1)))

    def reads(
        self, exprs: Iterable[Node], frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]
    ) -> None:
        for e in exprs:
            self.read(e, frames, scope, at)

    def read(self, e: Node, frames: Frames, scope: dict[str, Decl], at: tuple[int, ...]) -> None:
        if isinstance(e, Var | Const):
            return
        if isinstance(e, Reduce):
            self.reads([a.extent for a in e.axes], frames, scope, at)
            inner: Frames = (*frames, *(self.axis(a) for a in e.axes))
            self.reads(e.where, inner, scope, at)
            self.read(e.body, (*inner, *map(Guard, e.where)), scope, at)
            return
        if isinstance(e, Read):
            decl = self.find(e.tensor, scope, e)
            padded = e.fill is not None
            self.model.accesses.append(
                Access(decl, "read", e.indices, frames, e, at, padded=padded)
            )
        self.reads(children(e), frames, scope, at)

    def find(self, name: str, scope: dict[str, Decl], node: Node) -> Decl:
        if name not in scope:
            raise UnknownNameError(
                f"there is no tensor `{name}` here", kernel=self.model.kernel, node=node
            )
        return scope[name]
