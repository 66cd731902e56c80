"""`cse`: what is computed twice becomes one definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.errors import RewriteError
from kir.ir import Axis, Define, Expr, Kernel, Node, Read, Reduce, Stmt, Store, Var, rebuild, walk
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    edit_block,
    refuse,
    statements,
)
from kir.rewrites.outline import outlined
from kir.rewrites.places import Place, places, put

Key = tuple[Expr, tuple[Expr, ...]]


@dataclass(frozen=True)
class Cse(Rewrite):
    """`cse()`: parts of definitions that are equal, up to the names of indices, become one
    definition; a definition equal to an earlier one is read from it.

    Before::

        y[i: M] = exp(x[i]) * 2.0
        z[k: M] = exp(x[k]) + 1.0

    After::

        t[i: M] = exp(x[i])
        y[i: M] = t[i] * 2.0
        z[k: M] = t[k] + 1.0

    The largest parts first, until nothing is computed twice. Looked at are the definitions of one
    block; what is read from tensors that statements store to is left alone, and so is what would
    be computed out of bounds (see `outline`). Refused where nothing is computed twice.
    """

    name: ClassVar[str] = "cse"
    effect: ClassVar[Effect] = "exact"

    def edit(self, kernel: Kernel) -> Kernel:
        done = kernel
        left_alone: set[Key] = set()
        while True:
            found = _largest(done, left_alone)
            if found is None:
                break
            key, occurrences = found
            made = _shared(done, occurrences)
            if made is None:
                left_alone.add(key)
            else:
                done = made
        if done is kernel:
            refuse(kernel, "nothing is computed twice")
        return done

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        if _largest(kernel, set()) is not None:
            yield Move(cls.name)


@dataclass(frozen=True)
class _Occurrence:
    """A part, and the indices it uses in the order of the text."""

    place: Place
    indices: tuple[Axis, ...]


def _largest(kernel: Kernel, left_alone: set[Key]) -> tuple[Key, list[_Occurrence]] | None:
    """The largest part that occurs at least twice in the definitions of one block."""
    best: tuple[int, Key, list[_Occurrence]] | None = None
    stored = {s.target for s in statements(kernel.body) if isinstance(s, Store)}
    for block in _blocks(kernel):
        found: dict[Key, list[_Occurrence]] = {}
        for stmt in block:
            if not isinstance(stmt, Define | Store) or _recurs(stmt):
                continue
            for place in places(stmt):
                if not place.fixed and _worth(place, stored):
                    key, indices = _key(place)
                    found.setdefault(key, []).append(_Occurrence(place, indices))
        for key, occurrences in found.items():
            size = sum(1 for _ in walk(key[0]))
            if len(occurrences) > 1 and key not in left_alone and (not best or size > best[0]):
                best = size, key, occurrences
    return None if best is None else best[1:]


def _blocks(kernel: Kernel) -> Iterator[Block]:
    yield kernel.body
    for s in statements(kernel.body):
        body = getattr(s, "body", None)
        if body is not None:
            yield body


def _recurs(stmt: Define | Store) -> bool:
    return isinstance(stmt, Define) and len(stmt.axes) < len(stmt.dims)


def _worth(place: Place, stored: set[str]) -> bool:
    """Whether the part computes something out of tensors that do not change; of what statements
    store (a scalar output), only reductions become definitions."""
    e = place.expr
    if isinstance(place.stmt, Store) and not any(isinstance(n, Reduce) for n in walk(e)):
        return False
    reads = [n.tensor for n in walk(e) if isinstance(n, Read)]
    bare = isinstance(e, Read) and e.fill is None
    return not bare and bool(reads) and not stored.intersection(reads)


def _key(place: Place) -> tuple[Key, tuple[Axis, ...]]:
    """The part with its indices numbered by their first use, and with their extents; and these
    indices under their own names."""
    scope = {a.name: a for a in place.axes}
    numbers: dict[str, str] = {}
    used: list[Axis] = []
    count = 0

    def go(e: Node, bound: dict[str, str]) -> Node:
        nonlocal count
        if isinstance(e, Var):
            if e.name in bound:
                return Var(bound[e.name])
            if e.name in scope and e.name not in numbers:
                numbers[e.name] = f"#{len(used)}"
                used.append(scope[e.name])
            return Var(numbers.get(e.name, e.name))
        if isinstance(e, Reduce):
            inner = dict(bound)
            axes = []
            for a in e.axes:
                extent = go(a.extent, inner)
                assert isinstance(extent, Expr)
                count += 1
                inner[a.name] = f"##{count}"
                axes.append(Axis(inner[a.name], extent))
            where = tuple(go(c, inner) for c in e.where)
            return replace(e, axes=tuple(axes), where=where, body=go(e.body, inner))  # type: ignore[arg-type]
        return rebuild(e, lambda n: go(n, bound))

    shape = go(place.expr, {})
    assert isinstance(shape, Expr)
    return (shape, tuple(a.extent for a in used)), tuple(used)


def _shared(kernel: Kernel, occurrences: list[_Occurrence]) -> Kernel | None:
    """The kernel that computes the part once; None where that cannot be."""
    first = occurrences[0].place
    if not first.path and isinstance(first.stmt, Define):
        return _read_from(kernel, occurrences)
    try:
        (made,), read = outlined(kernel, first, None)
    except RewriteError:
        return None
    assert isinstance(made, Define) and isinstance(read, Read)
    order = [next(n for n, a in enumerate(occurrences[0].indices) if a.name == b.name)
             for b in made.axes]  # fmt: skip
    return _replaced(kernel, occurrences, made.name, order, read, ahead=(made,))


def _read_from(kernel: Kernel, occurrences: list[_Occurrence]) -> Kernel | None:
    """The part is the whole of an earlier definition: the others read that."""
    stmt = occurrences[0].place.stmt
    assert isinstance(stmt, Define)
    used = [a.name for a in occurrences[0].indices]
    stored = any(isinstance(s, Store) and s.target == stmt.name for s in statements(kernel.body))
    if stored or sorted(a.name for a in stmt.axes) != sorted(used):
        return None
    order = [used.index(a.name) for a in stmt.axes]
    read = Read(stmt.name, (), stmt.value.dtype)
    return _replaced(kernel, occurrences[1:], stmt.name, order, read)


def _replaced(
    kernel: Kernel,
    occurrences: list[_Occurrence],
    name: str,
    order: list[int],
    like: Read,
    ahead: Block = (),
) -> Kernel:
    """Every occurrence as a read of `name`, whose dims are the indices in this `order`."""
    parts: dict[int, list[_Occurrence]] = {}
    for o in occurrences:
        parts.setdefault(id(o.place.stmt), []).append(o)
    first = occurrences[0].place.stmt

    def edited(stmt: Stmt) -> Stmt:
        for o in parts.get(id(stmt), ()):
            indices = tuple(Var(o.indices[n].name) for n in order)
            stmt = put(stmt, o.place.path, replace(like, tensor=name, indices=indices))  # type: ignore[arg-type]
        return stmt

    def block(body: Block, position: int) -> Block:
        new = tuple(edited(s) for s in body)
        return (*new[:position], *ahead, *new[position:])

    return edit_block(kernel, first, block)
