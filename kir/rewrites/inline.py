"""`inline`: a definition goes into the places that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Axis,
    Define,
    Expr,
    Kernel,
    Node,
    Read,
    Reduce,
    Store,
    Var,
    children,
    const,
    rebuild,
    substitute,
    transform,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Effect,
    Move,
    Rewrite,
    fresh,
    names_in,
    refuse,
    replace_stmt,
    statements,
)
from kir.rewrites.places import find_define, reads_of, replace_reads, tensors_read


@dataclass(frozen=True)
class Inline(Rewrite):
    """`inline(def)`: a temporary's definition replaces all reads of it, before `loops()`.

    Before::

        e[i: N] = exp(x[i])
        y[i: N] = e[i] * 2

    After `inline(e)`::

        y[i: N] = exp(x[i]) * 2

    A definition that reduces is inlined only where that repeats no work: it is read once, by
    plain indices, and not inside another reduction. Refused for outputs, for recurrences that
    read themselves, and where a tensor it reads is stored to by statements.
    """

    name: ClassVar[str] = "inline"
    effect: ClassVar[Effect] = "exact"
    definition: str

    def edit(self, kernel: Kernel) -> Kernel:
        target = find_define(kernel, self.definition)
        reads = [n for s in kernel.body for n in reads_of(s, self.definition)]
        self._check(kernel, target, reads)
        used = names_in(kernel)

        def new(read: Read) -> Expr:
            return _expanded(read, target, used)

        body = replace_stmt(kernel, target, ()).body
        return replace(kernel, body=tuple(replace_reads(s, self.definition, new) for s in body))

    def _check(self, kernel: Kernel, target: Define, reads: list[Read]) -> None:
        if any(p.name == self.definition for p in kernel.outputs):
            refuse(kernel, f"`{self.definition}` is an output", node=target)
        inside = tensors_read(target)
        if self.definition in inside:
            refuse(kernel, f"`{self.definition}` reads its own earlier slices", node=target)
        for s in statements(kernel.body):
            if isinstance(s, Store) and s.target in inside:
                refuse(kernel, f"`{s.target}`, which it reads, is stored to", node=s)
        for k, dim in enumerate(target.dims):
            if isinstance(dim, Var):
                for read in reads:
                    if read.indices[k] != dim or read.fill is not None:
                        refuse(
                            kernel,
                            f"another iteration of `{dim.name}` is read here",
                            node=read,
                        )
        if any(isinstance(n, Reduce) for n in walk(target)):
            self._check_reduction(kernel, target, reads)

    def _check_reduction(self, kernel: Kernel, target: Define, reads: list[Read]) -> None:
        if len(reads) != 1:
            refuse(
                kernel,
                f"`{self.definition}` reduces and is read {len(reads)} times",
                node=reads[1] if reads else target,
            )
        moving = [
            e
            for e, d in zip(reads[0].indices, target.dims, strict=True)
            if not (isinstance(d, Axis) and d.extent == const(1))
        ]
        if not all(isinstance(e, Var) for e in moving) or len(set(moving)) != len(moving):
            refuse(kernel, "a definition that reduces is read by plain indices", node=reads[0])
        for n in _above(kernel, self.definition):
            if isinstance(n, Reduce):
                refuse(kernel, "it would be reduced again in every step", node=n)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        outputs = {p.name for p in kernel.outputs}
        names = [s.name for s in statements(kernel.body) if isinstance(s, Define)]
        for name in dict.fromkeys(names):
            if name not in outputs:
                yield Move(cls.name, (("definition", name),))


@dataclass(frozen=True)
class Recompute(Inline):
    """`recompute(def)`: like `inline`, where that repeats work: a definition that reduces goes
    into every place that reads it. `outline` and `cse` undo it.

    Before::

        m[i: M] = max(j: N) x[i, j]
        y[i: M, j: N] = x[i, j] - m[i]
        z[i: M] = m[i] * 2.0

    After `recompute(m)`::

        y[i: M, j: N] = x[i, j] - (max(j_2: N) x[i, j_2])
        z[i: M] = (max(j_3: N) x[i, j_3]) * 2.0

    Refused for outputs, for recurrences that read themselves, where a tensor it reads is stored
    to, and where it would come into the extent of an index.
    """

    name: ClassVar[str] = "recompute"
    effect: ClassVar[Effect] = "exact"

    def _check_reduction(self, kernel: Kernel, target: Define, reads: list[Read]) -> None:
        for n in _above(kernel, self.definition):
            if isinstance(n, Axis):
                refuse(kernel, "a reduction cannot give an extent", node=n)


def _above(kernel: Kernel, tensor: str) -> Iterator[Node]:
    """Every node in or above a read of a tensor."""
    stack: list[Node] = list(reversed(kernel.body))
    while stack:
        node = stack.pop()
        if tensor in tensors_read(node):
            yield node
            stack.extend(reversed(list(children(node))))


def _expanded(read: Read, target: Define, used: set[str]) -> Expr:
    """The definition's value at the indices of `read`; its own bound indices get new names."""
    bound: dict[str, str] = {}
    for n in walk(target.value):
        if isinstance(n, Reduce):
            for axis in n.axes:
                bound[axis.name] = fresh(axis.name, used)

    def renamed(n: Node) -> Node | None:
        if isinstance(n, Axis) and n.name in bound:
            return replace(n, name=bound[n.name])
        if isinstance(n, Var) and n.name in bound:
            return replace(n, name=bound[n.name])
        return None

    value = transform(target.value, renamed) if bound else target.value
    at = {d.name: e for d, e in zip(target.dims, read.indices, strict=True) if isinstance(d, Axis)}
    if read.fill is None:
        return substitute(value, at)
    value = substitute(_padded(value), at)
    inside: Expr | None = None
    for d, e in zip(target.dims, read.indices, strict=True):
        assert isinstance(d, Axis)
        here = op("and", op("ge", e, const(0)), op("lt", e, substitute(d.extent, at)))
        inside = here if inside is None else op("and", inside, here)
    return value if inside is None else op("select", inside, value, read.fill)


def _padded(value: Expr) -> Expr:
    """The value with a fill on every read, since it is also computed where it is not wanted."""

    def go(n: Node) -> Node:
        done = rebuild(n, go)
        if isinstance(done, Read) and done.fill is None and done.indices:
            return replace(done, fill=identity("or" if done.type.is_bool else "add", done.type))
        return done

    done = go(value)
    assert isinstance(done, Expr)
    return done
