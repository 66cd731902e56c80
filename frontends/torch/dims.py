"""Dims of lazy tensors: which are the same, and where views cut them.

A view regroups the elements of a tensor: [B, S, H] becomes [B*S, H]. So that neither side is read
with divisions, every dim is kept as a product of *factors*, outermost first, that no view in the
graph cuts; a dim of B*S has the factors (B, S), and its index is a tuple of one index for each.
Dims that are walked together are one (`unify`), so what cuts one cuts all. A view that cuts across
(2*3 seen as 3*2) keeps its divisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from kir.ir import Const, Expr, const
from kir.ops import op

Index = tuple[Expr, ...]
"""The index of a dim: one expression for each factor; none for a dim of 1."""


class Dim:
    """A dim of some size; `find` gives the one that stands for all that are the same."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parent: Dim = self
        self.cuts: set[int] = set()
        """Strides between factors, 1 and the size left out."""
        self.whole = False
        """Never cut."""

    def find(self) -> Dim:
        while self.parent is not self:
            self.parent = self.parent.parent
            self = self.parent
        return self

    @property
    def factors(self) -> tuple[int, ...]:
        """Outermost first; none for 1."""
        if self.size == 1:
            return ()
        ends = sorted({1, self.size, *self.find().cuts})
        return tuple(b // a for a, b in reversed(list(pairwise(ends)))) if self.size else (0,)

    def cut(self, strides: Iterable[int]) -> bool:
        """Cut here too, where all cuts divide one another; whether anything changed."""
        root = self.find()
        wanted = root.cuts | {s for s in strides if 1 < s < self.size}
        if root.whole or wanted == root.cuts or not nested({1, self.size, *wanted}):
            return False
        root.cuts = wanted
        return True

    def joined(self, index: Index) -> Expr:
        """The index as one number."""
        total: Expr = const(0)
        for size, part in zip(self.factors, index, strict=True):
            total = op("add", op("mul", total, const(size)), part) if not _is_zero(total) else part
        return total

    def split(self, index: Expr) -> Index:
        """A number as the index of each factor: divisions, unless there is one factor."""
        factors = self.factors
        found: list[Expr] = []
        for k, size in enumerate(reversed(factors)):
            last = k == len(factors) - 1
            found.append(index if last else op("mod", index, const(size)))
            if not last:
                index = op("floordiv", index, const(size))
        return tuple(reversed(found))


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 0


def nested(strides: Iterable[int]) -> bool:
    """Whether each divides the next."""
    ordered = sorted(strides)
    return all(a and b % a == 0 for a, b in pairwise(ordered))


def unify(a: Dim, b: Dim) -> None:
    """Walk both by one index. They have one size."""
    assert a.size == b.size
    one, other = a.find(), b.find()
    if one is other:
        return
    both = one.cuts | other.cuts
    whole = one.whole or other.whole
    if nested({1, a.size, *both}) and not (whole and both):
        one.cuts, one.whole = both, whole
        other.parent = one


def same(a: Dim, b: Dim) -> bool:
    return a.find() is b.find()


class View:
    """Two lists of dims over the same elements in the same order."""

    def __init__(self, before: Sequence[Dim], after: Sequence[Dim]) -> None:
        self.groups = list(_groups(before, after))

    def settle(self) -> bool:
        """Cut either side where the other ends or is cut; whether anything changed."""
        changed = False
        for before, after in self.groups:
            strides = _strides(before) | _strides(after)
            if nested(strides | {1}):
                changed |= _cut(before, strides) | _cut(after, strides)
        return changed

    def index(self, after: Sequence[Index]) -> list[Index]:
        """The index before, by dims, of one after."""
        found: list[Index] = []
        at = 0
        for mine, theirs in self.groups:
            here = after[at : at + len(theirs)]
            at += len(theirs)
            parts = [p for index in here for p in index]
            sizes = [f for d in theirs for f in d.factors]
            if sizes == [f for d in mine for f in d.factors]:
                for d in mine:
                    count = len(d.factors)
                    found.append(tuple(parts[:count]))
                    parts = parts[count:]
                continue
            flat: Expr = const(0)
            for size, part in zip(sizes, parts, strict=True):
                flat = op("add", op("mul", flat, const(size)), part)
            for d in reversed(mine[1:]):
                found.append(d.split(op("mod", flat, const(d.size))))
                flat = op("floordiv", flat, const(d.size))
            if mine:
                found.append(mine[0].split(flat))
            found[len(found) - len(mine) :] = reversed(found[len(found) - len(mine) :])
        return found


def _groups(before: Sequence[Dim], after: Sequence[Dim]) -> Iterable[tuple[list[Dim], list[Dim]]]:
    """The shortest runs of dims with equal products, left to right; empty tensors are one run."""
    if any(d.size == 0 for d in (*before, *after)):
        yield list(before), list(after)
        return
    left, right = list(before), list(after)
    while left or right:
        mine: list[Dim] = []
        theirs: list[Dim] = []
        one = other = 1
        while (not mine and not theirs) or one != other:
            if one <= other and left:
                mine.append(left.pop(0))
                one *= mine[-1].size
            else:
                theirs.append(right.pop(0))
                other *= theirs[-1].size
        yield mine, theirs


def _strides(dims: Sequence[Dim]) -> set[int]:
    found, below = set[int](), 1
    for d in reversed(dims):
        found |= {below * c for c in d.find().cuts}
        below *= d.size
        found.add(below)
    return found


def _cut(dims: Sequence[Dim], strides: set[int]) -> bool:
    changed, below = False, 1
    for d in reversed(dims):
        inside = {s // below for s in strides if below < s < below * d.size and s % below == 0}
        changed |= d.cut(inside)
        below *= d.size
    return changed
