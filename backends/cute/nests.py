"""How a program's `tile` nests fall on the threads of a CTA.

Pure analysis, no text: which axes of a nest are walked by threads and which by each thread in
turn, which register buffers live spread over the threads, which nests are matrix products. The
generator prints what is decided here, and the tests check these decisions in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kir.dtypes import bf16, f16, f32
from kir.errors import UnsupportedError
from kir.ir import (
    Buffer,
    Cast,
    Const,
    Expr,
    If,
    Loop,
    Node,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    children,
    substitute,
    walk,
)

MMA = (16, 8, 16)
"""Rows, columns and depth of the tensor-core instruction (mma.sync m16n8k16)."""


@dataclass(frozen=True)
class Nest:
    """Perfectly nested `tile` loops: axes outermost first with their extents, all conditions."""

    node: Loop
    axes: tuple[str, ...]
    extents: tuple[int, ...]
    conditions: tuple[Expr, ...]
    body: tuple[Stmt, ...]

    def extent(self, axis: str) -> int:
        return self.extents[self.axes.index(axis)]


@dataclass(frozen=True)
class Product:
    """`acc[m, n] += f32(left) * f32(right)` over lanes m, n, k: a matrix product of 16-bit floats.

    `left` depends on m and k, `right` on n and k. Conditions are sorted by what they bear on:
    the whole nest, rows, columns, depth."""

    nest: Nest
    acc: str
    m: str
    n: str
    k: str
    left: Expr
    right: Expr
    uniform: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]
    depth: tuple[Expr, ...]

    @property
    def tile(self) -> tuple[int, int, int]:
        return tuple(self.nest.extent(x) for x in (self.m, self.n, self.k))  # type: ignore[return-value]


def refuse(node: Node, message: str, hint: str | None = None) -> UnsupportedError:
    return UnsupportedError(f"via `cute`: {message}", hint=hint, node=node)


def static(e: Expr, node: Node) -> int:
    """The value of a constant; UnsupportedError where it is not one."""
    if isinstance(e, Const) and isinstance(e.value, int):
        return e.value
    raise refuse(node, "this extent must be a constant", "split the loop, or give `--shape`")


def variables(node: Node) -> set[str]:
    return {x.name for x in walk(node) if isinstance(x, Var)}


def gather(loop: Loop) -> Nest:
    """The perfect nest of `tile` loops that starts at `loop`."""
    axes: list[str] = []
    extents: list[int] = []
    conditions: list[Expr] = []
    node, body = loop, loop.body
    while True:
        axes.append(node.axis.name)
        extents.append(static(node.axis.extent, node))
        conditions.extend(node.where)
        body = node.body
        if len(body) != 1 or not isinstance(body[0], Loop) or body[0].kind != "tile":
            break
        node = body[0]
    return Nest(loop, tuple(axes), tuple(extents), tuple(conditions), body)


def program_level(body: Sequence[Stmt]) -> Iterator[Stmt]:
    """Every statement that is not inside a `tile` nest, parents first; `tile` loops included."""
    for s in body:
        yield s
        if isinstance(s, If) or (isinstance(s, Loop) and s.kind != "tile"):
            yield from program_level(s.body)


def accesses(body: Sequence[Stmt]) -> Iterator[Read | Store]:
    for s in body:
        yield from (x for x in walk(s) if isinstance(x, Read | Store))


def name_of(access: Read | Store) -> str:
    return access.tensor if isinstance(access, Read) else access.target


def product(nest: Nest, registers: Mapping[str, Buffer]) -> Product | None:
    """The nest as a matrix product, or None where it is something else."""
    if len(nest.axes) != 3 or len(nest.body) != 1:
        return None
    store = nest.body[0]
    if not isinstance(store, Store) or store.target not in registers:
        return None
    factors = _factors(store)
    if factors is None or registers[store.target].type != f32 or len(store.indices) != 2:
        return None
    m, n = (i.name if isinstance(i, Var) else "" for i in store.indices)
    rest = [a for a in nest.axes if a not in (m, n)]
    if m == n or m not in nest.axes or n not in nest.axes:
        return None
    k, lanes = rest[0], set(nest.axes)
    left, right = factors
    if m in variables(right):
        left, right = right, left
    if (variables(left) & lanes) != {m, k} or (variables(right) & lanes) != {n, k}:
        return None
    sorted_: dict[frozenset[str], list[Expr]] = {}
    for c in nest.conditions:
        sorted_.setdefault(frozenset(variables(c) & lanes), []).append(c)
    kinds = [frozenset(x) for x in ((), (m,), (n,), (k,))]
    for found, conditions in sorted_.items():
        if found not in kinds:
            raise refuse(
                nest.node,
                f"the mask of a matrix product mixes the axes {', '.join(sorted(found))}",
                "mask after the product instead",
            ).at(node=conditions[0])
    parts = (tuple(sorted_.get(kind, ())) for kind in kinds)
    return Product(nest, store.target, m, n, k, left, right, *parts)


def _factors(store: Store) -> tuple[Expr, Expr] | None:
    """a, b of `acc += f32(a) * f32(b)` or `acc = fma(f32(a), f32(b), acc)`, both of 16 bits."""
    value = store.value
    if not isinstance(value, Op):
        return None
    old = Read(store.target, store.indices, f32)
    plain = store.op == "add" and value.name == "mul"
    fused = store.op is None and value.name == "fma" and value.args[2] == old
    if not (plain or fused):
        return None
    a, b = value.args[:2]
    if not (isinstance(a, Cast) and isinstance(b, Cast) and a.type == b.type == f32):
        return None
    if a.value.dtype != b.value.dtype or a.value.dtype not in (bf16, f16):
        return None
    return a.value, b.value


def warp_grid(p: Product, warps: int) -> tuple[int, int]:
    """Rows and columns of warps that share a product's tile; UnsupportedError where none fit."""
    m, n, k = p.tile
    fitting = [
        (warps // across, across)
        for across in range(1, warps + 1)
        if warps % across == 0
        and m % (MMA[0] * (warps // across)) == 0
        and n % (MMA[1] * across) == 0
    ]
    if not fitting or k % MMA[2]:
        raise refuse(
            p.nest.node,
            f"a matrix product's tile of {m} x {n} x {k} cannot be shared by {warps} warps",
            "rows in multiples of 16, columns of 8 and depth of 16, times the warps along each;"
            " `hint(num_warps = ...)` on the grid sets their number",
        )
    return min(fitting, key=lambda g: (m // g[0] + n // g[1], g))


class Placement:
    """Where each register buffer of a program lives, and how each nest is walked.

    `spread`: buffers whose elements lie one per lane; those accessed in one nest form a group and
    share a mapping: of the tensor core's fragments where the group has a product, else linear.
    All other register buffers are replicated: every thread holds them whole.
    """

    def __init__(self, body: Sequence[Stmt], warps: int) -> None:
        self.warps = warps
        self.threads = 32 * warps
        levels = list(program_level(body))
        self.registers = {s.name: s for s in levels if isinstance(s, Buffer) and s.space == "reg"}
        self.locals = {s.name: s for s in levels if isinstance(s, Buffer) and s.space == "local"}
        self.nests = [gather(s) for s in levels if isinstance(s, Loop) and s.kind == "tile"]
        self.products = {
            id(n.node): p for n in self.nests if (p := product(n, self.registers)) is not None
        }
        self.spread: dict[str, str] = {}  # buffer -> its group's first buffer
        for n in self.nests:
            self._join(n)
        self._check_program_level(levels)
        self.fragments: dict[str, Product] = {}  # group -> a product in it
        for p in self.products.values():
            self.fragments.setdefault(self.spread[p.acc], p)
        for p in self.products.values():
            self._check_masks(p)

    def lane_index(self, nest: Nest) -> tuple[str, ...] | None:
        """The axes that index the spread buffers of a nest; None where it touches none."""
        found: dict[tuple[Expr, ...], Read | Store] = {}
        for a in accesses(nest.body):
            if name_of(a) in self.registers and any(
                variables(i) & set(nest.axes) for i in a.indices
            ):
                found.setdefault(a.indices, a)
        if not found:
            return None
        (indices, first), *others = found.items()
        names = tuple(i.name if isinstance(i, Var) else "" for i in indices)
        if (
            others
            or "" in names
            or len(set(names)) != len(names)
            or not set(names) <= set(nest.axes)
        ):
            raise refuse(
                others[0][1] if others else first,
                "a register buffer must be indexed by the same tile axes, bare, all through a nest",
                "keep it in `local`, or fission the nest",
            )
        return names

    def _join(self, nest: Nest) -> None:
        axes = self.lane_index(nest)
        if axes is None:
            return
        shape = tuple(nest.extent(a) for a in axes)
        used = [a for a in accesses(nest.body) if name_of(a) in self.registers and a.indices]
        group = None
        for a in used:
            name = name_of(a)
            if not any(variables(i) & set(nest.axes) for i in a.indices):
                continue
            buffer = self.registers[name]
            if tuple(static(n, buffer) for n in buffer.shape) != shape:
                raise refuse(a, f"`{name}` is wider than the lanes that index it")
            old = self.spread.setdefault(name, group or name)
            group = group or old
            if old != group:
                for other, of in list(self.spread.items()):
                    self.spread[other] = group if of == old else of

    def _check_program_level(self, levels: Sequence[Stmt]) -> None:
        """A spread buffer may only be touched by lanes."""
        for s in levels:
            if isinstance(s, Loop | If):
                parts: list[Node] = [*s.where, s.axis] if isinstance(s, Loop) else [s.condition]
            else:
                parts = [s]
            touched = [x for p in parts for x in walk(p) if isinstance(x, Read | Store)]
            for x in touched:
                if name_of(x) in self.spread:
                    raise refuse(
                        x, f"`{name_of(x)}` is spread over lanes but used outside a `tile`"
                    )
        for n in self.nests:
            for a in accesses(n.body):
                uniform = not any(variables(i) & set(n.axes) for i in a.indices)
                if name_of(a) in self.spread and uniform:
                    raise refuse(a, f"`{name_of(a)}` is spread over lanes but read as a whole")

    def _check_masks(self, p: Product) -> None:
        """Lanes that a product masks out of its rows or columns hold garbage afterwards (0 times
        infinity, say), so every nest that reads the accumulator must mask them out again."""
        for n in self.nests:
            if id(n.node) in self.products:
                continue
            reads = [a for a in accesses(n.body) if isinstance(a, Read) and a.tensor == p.acc]
            for r in reads:
                names = [i.name for i in r.indices if isinstance(i, Var)]
                renamed = {p.m: Var(names[0]), p.n: Var(names[1])}
                for c in (*p.rows, *p.columns):
                    if substitute(c, dict(renamed)) not in n.conditions:
                        raise refuse(
                            n.node,
                            f"`{p.acc}` is read without the mask of the product that made it",
                            "put the product's `where` on this nest as well",
                        )

    def walk_axes(self, nest: Nest) -> tuple[str, ...]:
        """The axes that are dealt out to threads, in the order of the linear lane number; each
        thread walks the others itself."""
        axes = self.lane_index(nest)
        if axes is not None:
            return axes
        kept = set(nest.axes)
        for a in accesses(nest.body):
            if isinstance(a, Store) and a.op is not None and a.target in self.locals:
                bare = {i.name for i in a.indices if isinstance(i, Var)} & set(nest.axes)
                used = {v for i in a.indices for v in variables(i)} & set(nest.axes)
                inner = set().union(*(variables(i) for i in a.indices)) if a.indices else set()
                if bare != used or inner & _bound(nest.body):
                    raise refuse(a, "an update of shared memory at an index that lanes may share")
                kept &= bare
        return tuple(a for a in nest.axes if a in kept)


def _bound(body: Sequence[Stmt]) -> set[str]:
    """Names of the loops below."""
    return {x.axis.name for s in body for x in walk(s) if isinstance(x, Loop)}


def lane_coordinates(lane: int, extents: Sequence[int]) -> tuple[int, ...]:
    """Where the linear lane number falls in a block: row-major, the last axis fastest."""
    out: list[int] = []
    for n in reversed(extents):
        out.append(lane % n)
        lane //= n
    return tuple(reversed(out))


def reads_memory(node: Node) -> bool:
    return isinstance(node, Read) or any(reads_memory(c) for c in children(node))
