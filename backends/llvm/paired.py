"""Tiles whose lanes stand in another order: the even ones first, then the odd ones.

Two bf16 side by side are a word of 32 bits. Its upper half, the rest masked off, is the odd element
as a f32, and its lower half, shifted up, is the even one: no lane leaves its place, where loading
them in order moves each of them twice. So do stores. What is computed lane by lane does not mind;
an element of a buffer in between holds what is another lane's, and all that access the buffer must
agree on that: `paired_tiles` says which tiles do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kir.backends.llvm.affine import coefficient, mentions, multiple_of
from kir.backends.llvm.builder import Builder, V, integer
from kir.dtypes import bf16
from kir.ir import (
    Bitcast,
    Cast,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Stmt,
    Store,
    const,
    substitute,
    walk,
)

GROUP = 16
"""Such a tile has a multiple of so many lanes: two vectors of f32 of 256 bits."""
MOST = 64


def load(b: Builder, pointer: V, lanes: int) -> V:
    """As many bf16 side by side as f32, even ones first."""
    words = b.load(pointer, "i32", lanes // 2, 2)
    even = b.op("shl", words, integer(16, "i32"))
    odd = b.op("and", words, integer(-65536, "i32"))
    return b.joined([b.convert("bitcast", half, "float") for half in (even, odd)])


def packed(b: Builder, value: V) -> V:
    """Words to store, two bf16 each, of f32 that hold bf16, even ones first."""
    even, odd = b.halves(b.convert("bitcast", value, "i32"))
    low = b.op("lshr", even, integer(16, "i32"))
    return b.op("or", low, b.op("and", odd, integer(-65536, "i32")))


@dataclass
class Survey:
    """What the statements of a kernel access, seen one after another."""

    params: dict[str, bool]
    """Inputs and outputs, and whether they are bf16."""
    tiles: dict[int, set[str]] = field(default_factory=dict)
    """Tiles that may be in pairs, by `id`, and what each takes side by side."""
    widths: dict[str, set[int]] = field(default_factory=dict)
    """How many elements such tiles take of a tensor at a time."""
    others: set[str] = field(default_factory=set)
    """What is accessed in any other way."""

    def visit(self, s: Stmt) -> None:
        if isinstance(s, Loop) and s.kind == "tile":
            self._tile(s)
            return
        if not isinstance(s, Loop | If):
            self._in_order(s)
            return
        for e in (s.condition,) if isinstance(s, If) else (s.axis.extent, *s.where):
            self._in_order(e)
        for inner in s.body:
            self.visit(inner)

    def _in_order(self, node: Node) -> None:
        self.others |= {_name(n) for n in walk(node) if isinstance(n, Read | Store)}

    def _tile(self, s: Loop) -> None:
        width = int(s.axis.extent.value) if isinstance(s.axis.extent, Const) else 0
        plain = all(isinstance(x, Store) and not _numbers(x.value, s.axis.name) for x in s.body)
        if s.where or not plain or width % GROUP or not 0 < width <= MOST:
            self._in_order(s)
            return
        taken, same = set[str](), set[str]()
        for n in (n for x in s.body for n in walk(x) if isinstance(n, Read | Store)):
            side = self._side_by_side(n, s.axis.name, width)
            if side is None:
                self._in_order(s)
                return
            (taken if side else same).add(_name(n))
        self.others |= same
        self.tiles[id(s)] = taken
        for name in taken:
            self.widths.setdefault(name, set()).add(width)

    def _side_by_side(self, n: Read | Store, lane: str, width: int) -> bool | None:
        """Whether lanes take elements side by side, or all the same; None where the order of the
        lanes matters."""
        steps, param = [coefficient(i, lane) for i in n.indices], _name(n) in self.params
        update = isinstance(n, Store) and n.op is not None
        if all(k == 0 for k in steps):
            return False if isinstance(n, Read) or (update and not param) else None
        first = substitute(n.indices[-1], {lane: const(0)})
        if steps[-1] != 1 or any(k != 0 for k in steps[:-1]) or (param and update):
            return None
        if (isinstance(n, Read) and n.fill is not None) or not self.params.get(_name(n), True):
            return None
        return True if param or multiple_of(first, width, {}) else None


def paired_tiles(kernel: Kernel) -> frozenset[int]:
    """The tiles of a scheduled kernel (by `id`) whose lanes stand in pairs.

    Such a tile has one axis of a multiple of 16 lanes, all of which run, and only stores. No value
    depends on a lane's number. Of inputs and outputs it takes bf16 side by side, or one element for
    all lanes. Of a buffer that it takes side by side, all that is ever taken are groups of as many
    elements, from multiples of that number on, by such tiles.
    """
    survey = Survey({p.name: p.type == bf16 for p in kernel.params})
    if not any(survey.params.values()):
        return frozenset()
    for s in kernel.body:
        survey.visit(s)
    tiles, bad = dict(survey.tiles), set(survey.others)
    bad |= {name for name, widths in survey.widths.items() if len(widths) > 1}
    bad -= survey.params.keys()
    while True:
        left = {t: taken for t, taken in tiles.items() if taken.isdisjoint(bad)}
        if len(left) == len(tiles):
            return frozenset(tiles)
        for t in tiles.keys() - left.keys():
            bad |= tiles[t] - survey.params.keys()
        tiles = left


def _name(n: Read | Store) -> str:
    return n.tensor if isinstance(n, Read) else n.target


def _numbers(e: Expr, lane: str) -> bool:
    """Whether the number of a lane is part of a value, other than as an index."""
    return not isinstance(e, Read) and mentions(e, lane) and any(_parts(e, lane))


def _parts(e: Expr, lane: str) -> Iterator[bool]:
    if isinstance(e, Op):
        yield from (_numbers(a, lane) for a in e.args)
    elif isinstance(e, Cast | Bitcast):
        yield _numbers(e.value, lane)
    else:
        yield True
