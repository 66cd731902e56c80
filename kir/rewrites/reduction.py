"""Rewrites of accumulations in loops: `rfactor`, `parallel_reduce`, `contract_fma`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.dtypes import DType
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Read,
    Space,
    Stmt,
    Store,
    Var,
    const,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    extent_of,
    find_buffer,
    find_loop,
    fresh,
    loops_of,
    names_in,
    path_to,
    refuse,
    reindex,
    replace_stmt,
    require_loops,
    statements,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.rewrites.memory import check_space


def regrouping(update: str, dtype: DType) -> Effect:
    """What it does to results to combine by `update` in another order: sums and products of
    floats round differently; integers wrap, and extremes and logic do not round."""
    return "reassociates" if dtype.is_float and update in ("add", "mul") else "exact"


def chosen_name(kernel: Kernel, wanted: str | None, base: str, used: set[str], at: Stmt) -> str:
    """The name asked for, refused where it is taken, or a fresh one made of `base`."""
    if wanted is not None and wanted in used:
        refuse(kernel, f"the name `{wanted}` is taken", node=at)
    return fresh(wanted or base, used)


@dataclass(frozen=True)
class RFactor(Rewrite):
    """`rfactor(acc, i, partial = name, space = local)`: each iteration of the loop `i` accumulates
    on its own; then they combine.

    Before::

        buffer acc: f32 in reg = 0
        for i_o: cdiv(N, 16) { for i: 16 where i_o*16 + i < N { acc += x[i_o*16 + i] } }

    After::

        buffer acc: f32 in reg = 0
        buffer acc_i: f32[16] in reg = 0
        for i_o: cdiv(N, 16) { for i: 16 where i_o*16 + i < N { acc_i[i] += x[i_o*16 + i] } }
        for i_2: 16 { acc += acc_i[i_2] }

    The partial results have an axis for `i` in front of the dims of `acc`; they live in the space
    of `acc` unless another is named. Where the extent of `i` is no constant that is `local` or
    `global`. The combining loops follow the statement of `acc`'s block that accumulates; the one
    over `i` is of its kind (a `for` where that is a `grid`). Refused where that statement does
    anything to `acc` but update it by one op, or `acc` has dims and no value to begin with.

    Blocked accumulation (sum short runs apart, in a narrow type, and add these up in a wide one) is
    `split(i, 64)`, `rfactor(acc, i_o, space = local)`, `fuse(i_o, i_o_2)`,
    `contract(acc_i_o, reg)`, and `accumulate_in(acc, f64)` for the outer sum.
    """

    name: ClassVar[str] = "rfactor"
    effect: ClassVar[Effect] = "reassociates"
    acc: str
    loop: str
    partial: str | None = None
    space: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        acc, loop = find_buffer(kernel, self.acc), find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        between = self._between(kernel, acc, loop)
        update = self._update(kernel, acc, loop, between)
        space = self._space(kernel, acc, loop, between)
        used = names_in(kernel)
        partial = chosen_name(kernel, self.partial, f"{self.acc}_{self.loop}", used, acc)
        made = Buffer(
            partial, acc.type, (loop.axis.extent, *acc.shape), space, identity(update, acc.type)
        )
        combine = self._combine(acc, loop, partial, update, used)

        def index(old: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return (Var(self.loop), *old)

        def within(stmt: Stmt) -> Stmt:
            if stmt is loop:
                return reindex(stmt, self.acc, index, partial)
            if isinstance(stmt, Loop | If):
                return replace(stmt, body=tuple(within(s) for s in stmt.body))
            return stmt

        top = between[0]

        def edit(block: Block, _: int) -> Block:
            at = next(k for k, s in enumerate(block) if s is top)
            return (*block[:at], made, within(top), combine, *block[at + 1 :])

        return edit_block(kernel, acc, edit)

    def _between(self, kernel: Kernel, acc: Buffer, loop: Loop) -> tuple[Stmt, ...]:
        """The statements from `acc`'s block down to `loop`, itself included."""
        outer, inner = path_to(kernel.body, acc) or (), path_to(kernel.body, loop) or ()
        if inner[: len(outer)] != outer or len(inner) < len(outer):
            refuse(kernel, f"`{self.loop}` is not in the scope of `{self.acc}`", node=loop)
        return (*inner[len(outer) :], loop)

    def _update(self, kernel: Kernel, acc: Buffer, loop: Loop, between: Sequence[Stmt]) -> str:
        """The op by which everything inside the accumulating statement updates `acc`."""
        uses = [a for a in accesses((between[0],)) if a.tensor == self.acc]
        if not any(a.tensor == self.acc for a in accesses((loop,))):
            refuse(kernel, f"`{self.loop}` does not accumulate into `{self.acc}`", node=loop)
        for a in uses:
            if a.op in ("read", "write") or a.op != uses[0].op:
                refuse(kernel, f"`{self.acc}` is not only accumulated here", node=a.node)
        if acc.init is None:  # the combination updates all of it, even if no iteration did
            refuse(
                kernel,
                f"not all of `{self.acc}` is known to have a value before it is accumulated",
                node=acc,
                hint="give the buffer one where it is declared",
            )
        return uses[0].op

    def _space(self, kernel: Kernel, acc: Buffer, loop: Loop, between: Sequence[Stmt]) -> Space:
        space = check_space(kernel, self.space or acc.space, loop)
        extent = loop.axis.extent
        inside = {s.axis.name for s in between if isinstance(s, Loop)}
        if var_names(extent) & inside or any(isinstance(n, Read) for n in walk(extent)):
            refuse(kernel, f"the extent of `{self.loop}` changes while it accumulates", node=loop)
        if space == "reg" and extent_of(loop) is None:
            refuse(
                kernel,
                f"the extent of `{self.loop}` is not constant",
                node=loop,
                hint=f"`split({self.loop}, 16)` first, or keep the partial results in another "
                "space: `space = local`",
            )
        grids = [s for s in between if isinstance(s, Loop) and s.kind == "grid"]
        grids += [x for x in loops_of(loop.body) if x.kind == "grid"]
        if space != "global" and grids:
            refuse(
                kernel,
                f"`{self.acc}` is accumulated by a grid, so its partial results are global",
                node=grids[0],
                hint="add `space = global`",
            )
        return space

    def _combine(self, acc: Buffer, loop: Loop, partial: str, update: str, used: set[str]) -> Loop:
        again = fresh(self.loop, used)
        dims = [fresh(f"{self.acc}_{d}", used) for d in range(len(acc.shape))]
        at = tuple(Var(d) for d in dims)
        stmt: Stmt = Store(self.acc, at, Read(partial, (Var(again), *at), acc.type), update)
        kind = "for" if loop.kind == "grid" else loop.kind
        for name, extent in reversed(list(zip(dims, acc.shape, strict=True))):
            stmt = Loop("for", Axis(name, extent), (), (stmt,))
        return Loop(kind, Axis(again, loop.axis.extent), (), (stmt,))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every buffer with each loop that updates it; where the extent is no constant, or the
        accumulator is in registers, with the spaces that the partial results may live in."""
        for acc, loop in updated(kernel):
            spaces: tuple[str, ...] = ("local", "global")
            if extent_of(loop) is not None:
                yield Move(cls.name, (("acc", acc.name), ("loop", loop.axis.name)))
            for space in spaces:
                if space != acc.space or extent_of(loop) is None:
                    fixed = (("acc", acc.name), ("loop", loop.axis.name), ("space", space))
                    yield Move(cls.name, fixed)

    def effect_on(self, kernel: Kernel) -> Effect:
        acc, loop = find_buffer(kernel, self.acc), find_loop(kernel, self.loop)
        between = self._between(kernel, acc, loop)
        return regrouping(self._update(kernel, acc, loop, between), acc.type)


def updated(kernel: Kernel) -> Iterator[tuple[Buffer, Loop]]:
    """Each buffer with each loop between its declaration and an update of it, in order."""

    def go(body: Block, known: Mapping[str, tuple[Buffer, int]], around: tuple[Loop, ...]) -> None:
        known = dict(known)
        for s in body:
            if isinstance(s, Buffer):
                known[s.name] = (s, len(around))
            elif isinstance(s, Store) and s.op is not None and s.target in known:
                acc, depth = known[s.target]
                for loop in around[depth:]:
                    found.setdefault((id(acc), id(loop)), (acc, loop))
            elif isinstance(s, Loop):
                go(s.body, known, (*around, s))
            elif isinstance(s, If):
                go(s.body, known, around)

    found: dict[tuple[int, int], tuple[Buffer, Loop]] = {}
    go(kernel.body, {}, ())
    yield from found.values()


@dataclass(frozen=True)
class ParallelReduce(Rewrite):
    """`parallel_reduce(i, space = local, buffer = name)`: a loop that only accumulates becomes a
    tree, half as many values in each step.

    Before::

        tile i: 8 { acc += x[i] }

    After `parallel_reduce(i)`::

        buffer acc_tree: f32[8] in local
        tile i: 8 { acc_tree[i] = x[i] }
        tile i_2: 4 { acc_tree[i_2] += acc_tree[i_2 + 4] }
        tile i_3: 2 { acc_tree[i_3] += acc_tree[i_3 + 2] }
        acc_tree[0] += acc_tree[1]
        acc += acc_tree[0]

    `i` has a constant extent, at most 4096, and its body is one update whose target does not
    depend on `i`. What a mask leaves out is the op's identity. All loops are of the kind of `i`,
    which is no `grid`.
    """

    name: ClassVar[str] = "parallel_reduce"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    space: str = "local"
    buffer: str | None = None

    LIMIT: ClassVar[int] = 4096

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        space = check_space(kernel, self.space, loop)
        require_loops(kernel, (loop,))
        store, count = self._accumulation(kernel, loop)
        assert store.op is not None
        used = names_in(kernel)
        dtype = store.value.dtype
        tree = chosen_name(kernel, self.buffer, f"{store.target}_tree", used, loop)
        init = identity(store.op, dtype) if loop.where else None
        made = Buffer(tree, dtype, (const(count),), space, init)
        first = Store(tree, (Var(self.loop),), store.value, span=store.span)
        body: list[Stmt] = [made, replace(loop, body=(first,))]
        left = count
        while left > 1:
            half = (left + 1) // 2
            body.append(self._step(loop, tree, dtype, store.op, half, left - half, used))
            left = half
        body.append(replace(store, value=Read(tree, (const(0),), dtype)))
        return replace_stmt(kernel, loop, tuple(body))

    def _step(
        self,
        loop: Loop,
        tree: str,
        dtype: DType,
        update: str,
        half: int,
        lanes: int,
        used: set[str],
    ) -> Stmt:
        """`tree[i] op= tree[i + half]` for each of the lanes: none reads what another writes."""
        if lanes == 1:
            return Store(tree, (const(0),), Read(tree, (const(half),), dtype), update)
        name = fresh(self.loop, used)
        other = Read(tree, (op("add", Var(name), const(half)),), dtype)
        body = (Store(tree, (Var(name),), other, update),)
        return Loop(loop.kind, Axis(name, const(lanes)), (), body)

    def _accumulation(self, kernel: Kernel, loop: Loop) -> tuple[Store, int]:
        count = extent_of(loop)
        if count is None or not 2 <= count <= self.LIMIT:
            refuse(
                kernel,
                f"the extent of `{self.loop}` is not a constant from 2 to {self.LIMIT}",
                node=loop,
                hint=f"`split({self.loop}, 64)` first",
            )
        if loop.kind == "grid":
            refuse(kernel, "the iterations of a grid share no step of a tree", node=loop)
        store = loop.body[0] if len(loop.body) == 1 else None
        if not isinstance(store, Store) or store.op is None:
            refuse(
                kernel,
                f"the body of `{self.loop}` is not one update",
                node=loop,
                hint="`fission` leaves it alone in a loop",
            )
        if any(self.loop in var_names(e) for e in store.indices):
            refuse(kernel, f"iterations of `{self.loop}` update different elements", node=store)
        parts = (*loop.where, *store.indices, store.value)
        if any(isinstance(n, Read) and n.tensor == store.target for e in parts for n in walk(e)):
            refuse(kernel, f"`{store.target}` is read while it is accumulated", node=store)
        if loop.where:
            self._reachable(kernel, loop, store)
        return store, count

    def _reachable(self, kernel: Kernel, loop: Loop, store: Store) -> None:
        """The target is updated once, outside of the mask: it must be in bounds there too."""
        shapes = {p.name: p.shape for p in kernel.outputs}
        shapes |= {b.name: b.shape for b in buffers_of(kernel.body)}
        around = path_to(kernel.body, loop) or ()
        extents = {s.axis.name: s.axis.extent for s in around if isinstance(s, Loop)}
        for e, extent in zip(store.indices, shapes[store.target], strict=True):
            inside = isinstance(e, Var) and extents.get(e.name) == extent
            if isinstance(e, Const) and isinstance(extent, Const):
                inside = 0 <= e.value < extent.value
            if not inside:
                refuse(
                    kernel,
                    f"`{store.target}` may be out of bounds where the mask does not hold",
                    node=store,
                    hint="accumulate into a buffer first",
                )

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for loop in loops_of(kernel.body):
            body = loop.body[0] if len(loop.body) == 1 else None
            if isinstance(body, Store) and body.op is not None:
                for space in ("local", "reg"):
                    yield Move(cls.name, (("loop", loop.axis.name), ("space", space)))

    def effect_on(self, kernel: Kernel) -> Effect:
        store, _ = self._accumulation(kernel, find_loop(kernel, self.loop))
        assert store.op is not None
        return regrouping(store.op, store.value.dtype)


@dataclass(frozen=True)
class ContractFma(Rewrite):
    """`contract_fma()`: `acc += a * b` on floats becomes `acc = fma(a, b, acc)`, one rounding.

    Before::

        acc += x[i] * y[i]

    After::

        acc = fma(x[i], y[i], acc)

    All such updates in f32 and f64 are changed, but for those in which lanes of a `tile` or
    iterations of a `grid` share the target: these stay reductions.
    """

    name: ClassVar[str] = "contract_fma"
    effect: ClassVar[Effect] = "approximates"

    def edit(self, kernel: Kernel) -> Kernel:
        done = replace(kernel, body=self._block(kernel.body, frozenset(), {}))
        if done == kernel:
            refuse(kernel, "there is no `acc += a * b` on f32 or f64 here")
        return done

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for s in statements(kernel.body):
            if isinstance(s, Store) and s.op == "add" and isinstance(s.value, Op):
                yield Move(cls.name)
                return

    def bound(self) -> str:
        return (
            "leaves out the rounding of each product: less than one unit roundoff of |a * b| for "
            "each, no more than the rounding itself; a product that would overflow may not"
        )

    def _block(
        self, body: Block, lanes: frozenset[str], born: Mapping[str, frozenset[str]]
    ) -> Block:
        """`lanes`: the grid and tile indices in scope; `born`: those around each buffer."""
        born = {**born, **{s.name: lanes for s in body if isinstance(s, Buffer)}}
        return tuple(self._stmt(s, lanes, born) for s in body)

    def _stmt(self, stmt: Stmt, lanes: frozenset[str], born: Mapping[str, frozenset[str]]) -> Stmt:
        if isinstance(stmt, Loop):
            inner = lanes | {stmt.axis.name} if stmt.kind in ("tile", "grid") else lanes
            return replace(stmt, body=self._block(stmt.body, inner, born))
        if isinstance(stmt, If):
            return replace(stmt, body=self._block(stmt.body, lanes, born))
        if isinstance(stmt, Store) and stmt.op == "add":
            plain = {e.name for e in stmt.indices if isinstance(e, Var)}
            shared = lanes - born.get(stmt.target, frozenset()) - plain
            match stmt.value:
                case Op("mul", (a, b), type) if not shared and type.name in ("f32", "f64"):
                    old = Read(stmt.target, stmt.indices, type)
                    return replace(stmt, op=None, value=op("fma", a, b, old))
        return stmt
