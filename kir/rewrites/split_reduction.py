"""Reductions in two steps: `split_reduction` on definitions, `split_k` on nests of loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    Kernel,
    Loop,
    LoopKind,
    Node,
    Read,
    Reduce,
    Stmt,
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
    Block,
    Effect,
    Move,
    Rewrite,
    Whole,
    copy_with_fresh_names,
    edit_block,
    find_buffer,
    find_loop,
    free_vars,
    fresh,
    guarded,
    loops_of,
    names_in,
    path_to,
    refuse,
    reindex,
    rename,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.rewrites.places import Valued, find_define, name_of, valued
from kir.rewrites.reduction import chosen_name, regrouping, updated
from kir.rewrites.split import divides, reads_tensors
from kir.rewrites.window import determines


@dataclass(frozen=True)
class SplitReduction(Rewrite):
    """`split_reduction(y, k, factor, partial = name, nth = 0)`: a reduction is computed for blocks
    of `factor` first, by a definition of its own, and these results are reduced.

    Before::

        y[i: M] = sum(k: K) x[i, k]

    After `split_reduction(y, k, 64)`::

        y_k[k_o: cdiv(K, 64), i: M] = sum(k: 64 where k_o*64 + k < K) x[i, k_o*64 + k]
        y[i: M] = sum(k_o: cdiv(K, 64)) y_k[k_o, i]

    Of a reduction over several indices the others stay with the blocks. `nth` tells reductions
    over indices of one name apart, in the order of the text. Refused inside another reduction,
    where the extent of `k` depends on other indices, and for `argmax` and `argmin`; after
    `loops()` these are reductions of values and of indices, which `rfactor` takes.
    """

    name: ClassVar[str] = "split_reduction"
    effect: ClassVar[Effect] = "reassociates"
    definition: str
    axis: str
    factor: int
    partial: str | None = None
    nth: int = 0

    def edit(self, kernel: Kernel) -> Kernel:
        target, found = self._find(kernel)
        if self.factor < 1:
            refuse(kernel, f"a block cannot be {self.factor} long", node=target)
        self._check(kernel, target, found)
        used = names_in(kernel)
        base = f"{self.definition}_{self.axis}"
        partial = chosen_name(kernel, self.partial, base, used, target)
        outer = Axis(fresh(f"{self.axis}_o", used), self._blocks(found))
        kept = self._kept(target, found)
        first = Define(partial, (outer, *kept), self._block(kernel, found, outer), span=target.span)
        at = (Var(outer.name), *(Var(a.name) for a in kept))
        combined = replace(found, axes=(outer,), where=(), body=Read(partial, at, found.body.dtype))

        def visit(n: Node) -> Node:
            return combined if n is found else rebuild(n, visit)

        last = rebuild(target, visit)
        return replace_stmt(kernel, target, (first, last))

    def _blocks(self, found: Reduce) -> Expr:
        extent = next(a.extent for a in found.axes if a.name == self.axis)
        return op("cdiv", extent, const(self.factor))

    def _find(self, kernel: Kernel) -> tuple[Valued, Reduce]:
        known = [s for s, _ in valued(kernel) if name_of(s) == self.definition]
        target: Valued = known[0] if known else find_define(kernel, self.definition)
        over = [
            (s, r)
            for s in known
            for r, _ in _reductions(s.value)
            if self.axis in {a.name for a in r.axes}
        ]
        if not 0 <= self.nth < len(over):
            which = f", number {self.nth}" if over else ""
            refuse(
                kernel,
                f"`{self.definition}` has no reduction over `{self.axis}`{which}",
                node=target,
                hint="they are numbered from 0" if over else None,
            )
        return over[self.nth]

    def _check(self, kernel: Kernel, target: Valued, found: Reduce) -> None:
        if found.name in ARG_REDUCTIONS:
            refuse(
                kernel,
                f"the blocks of `{found.name}` do not combine into one index",
                node=found,
                hint="`loops()` makes two reductions of it, which `rfactor` takes apart",
            )
        around = next(a for r, a in _reductions(target.value) if r is found)
        if around is not None:
            refuse(
                kernel,
                "this reduction is inside another one",
                node=found,
                hint="`outline` gives it a definition of its own",
            )
        dims = {d.name for d in kernel.dims}
        for a in found.axes:
            if a.name == self.axis and free_vars(a.extent) - dims:
                refuse(
                    kernel,
                    f"the extent of `{self.axis}` depends on other indices",
                    node=found,
                    hint="write it as a condition: `sum(k: K where k < ...)`",
                )
        if any(isinstance(n, Read) and n.tensor == self.definition for n in walk(found)):
            refuse(kernel, f"`{self.definition}` reads its own earlier slices here", node=found)

    def _kept(self, target: Valued, found: Reduce) -> tuple[Axis, ...]:
        """The indices of the definition that the reduction depends on; all of them where it reads
        an element that may be there only because the definition has any at all."""
        if isinstance(target, Store):
            return ()
        names = free_vars(found)
        own = {a.name for a in target.axes if a.name in names}
        own |= {a.name for r in walk(found) if isinstance(r, Reduce) for a in r.axes}
        reads = [n for n in walk(found) if isinstance(n, Read) and n.fill is None]
        if not all(free_vars(i) & own for n in reads for i in n.indices):
            return target.axes
        return tuple(a for a in target.axes if a.name in names)

    def _block(self, kernel: Kernel, found: Reduce, outer: Axis) -> Reduce:
        extent = next(a.extent for a in found.axes if a.name == self.axis)
        index = op("add", op("mul", Var(outer.name), const(self.factor)), Var(self.axis))
        here: dict[str, Expr] = {self.axis: index}
        inside = () if divides(kernel, extent, self.factor) else (op("lt", index, extent),)
        where = tuple(substitute(c, here) for c in found.where)
        if inside:  # conditions are computed for what the mask leaves out, too
            where = tuple(_padded(c) for c in where)
        axes = tuple(
            Axis(a.name, const(self.factor))
            if a.name == self.axis
            else replace(a, extent=substitute(a.extent, here))
            for a in found.axes
        )
        return replace(found, axes=axes, where=inside + where, body=substitute(found.body, here))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        seen: dict[tuple[str, str], int] = {}
        for s, _ in valued(kernel):
            for r, around in _reductions(s.value):
                for a in r.axes:
                    key = (name_of(s), a.name)
                    nth = seen.setdefault(key, 0)
                    seen[key] += 1
                    if around is None and r.name in REDUCTIONS:
                        fixed = (("definition", name_of(s)), ("axis", a.name), ("nth", nth))
                        yield Move(cls.name, fixed, (("factor", Whole(1, None, (64, 16, 256))),))

    def effect_on(self, kernel: Kernel) -> Effect:
        _, found = self._find(kernel)
        return regrouping(REDUCTIONS.get(found.name, "max"), found.body.dtype)

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        made = [s for s, _ in valued(after) if name_of(s) == self.definition]
        new = names_in(after) - names_in(before)
        outer = next(
            r.axes[0].name for s in made for r, _ in _reductions(s.value) if r.axes[0].name in new
        )
        return {self.axis: (self.axis, outer)}


def _reductions(e: Expr, around: Reduce | None = None) -> Iterator[tuple[Reduce, Reduce | None]]:
    """The reductions in an expression, in the order of the text, each with the one around it."""
    if isinstance(e, Reduce):
        yield e, around
        around = e
    for child in children(e):
        if isinstance(child, Expr):
            yield from _reductions(child, around)


def _same(one: Sequence[Stmt], two: Sequence[Stmt]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def _padded(condition: Expr) -> Expr:
    """The condition with a fill on every read: what it gives out of bounds does not matter."""

    def visit(n: Node) -> Node | None:
        if isinstance(n, Read) and n.indices and n.fill is None:
            return replace(n, fill=identity("or" if n.type.is_bool else "add", n.type))
        return None

    return transform(condition, visit)


@dataclass(frozen=True)
class _Nest:
    """What `split_k` works on: loops perfectly nested around a block, the buffer and the
    accumulating loop in it."""

    chain: tuple[Loop, ...]
    block: Block
    acc: Buffer
    loop: Loop
    update: str

    @property
    def top(self) -> Stmt:
        return self.chain[0] if self.chain else self.loop

    @property
    def indices(self) -> tuple[Expr, ...]:
        return tuple(Var(x.axis.name) for x in self.chain)


@dataclass(frozen=True)
class SplitK(Rewrite):
    """`split_k(acc, k, parts, by = partials)`: programs of a grid take every `parts`-th iteration
    of the accumulating loop `k` each, and what they find is combined.

    Before::

        for i: M { for j: N {
          buffer acc: f32 in reg = 0
          for k: K { acc += a[i, k] * b[k, j] }
          c[i, j] = acc
        } }

    After `split_k(acc, k, 4)`::

        buffer acc_parts: f32[4, M, N] in global
        grid k_part: 4 { for i: M { for j: N {
          buffer acc_part: f32 in reg = 0
          for k: cdiv(K, 4) where k*4 + k_part < K { acc_part += a[i, k*4 + k_part] * ... }
          acc_parts[k_part, i, j] = acc_part
        } } }
        for i_2: M { for j_2: N {
          buffer acc: f32 in reg = 0
          for k_part_2: 4 { acc += acc_parts[k_part_2, i_2, j_2] }
          c[i_2, j_2] = acc
        } }

    After `split_k(acc, k, 4, by = updates)`::

        for i_2: M { for j_2: N { c[i_2, j_2] = 0 } }
        grid k_part: 4 { for i: M { for j: N {
          buffer acc_part: f32 in reg = 0
          for k: cdiv(K, 4) where k*4 + k_part < K { acc_part += a[i, k*4 + k_part] * ... }
          c[i, j] += acc_part
        } } }

    `k` stands in the block of `acc`, does nothing but update it by one op, and reads nothing that
    the nest writes. The loops around that hold nothing else are gone through by every part. By
    `updates` the block is `acc` with a constant, `k`, and a store of `acc` to elements that no
    other iteration stores to.
    """

    name: ClassVar[str] = "split_k"
    effect: ClassVar[Effect] = "reassociates"
    acc: str
    loop: str
    parts: int
    by: str = "partials"

    WAYS: ClassVar[tuple[str, ...]] = ("partials", "updates")

    def edit(self, kernel: Kernel) -> Kernel:
        nest = self._nest(kernel)
        if self.parts < 1:
            refuse(kernel, f"a loop has no {self.parts} parts", node=nest.loop)
        if self.by not in self.WAYS:
            refuse(kernel, f"`{self.by}` is no way to combine", hint=", ".join(self.WAYS))
        if self.by == "updates":
            return self._by_updates(kernel, nest)
        return self._by_partials(kernel, nest)

    # --- the precondition

    def _nest(self, kernel: Kernel) -> _Nest:
        acc, loop = find_buffer(kernel, self.acc), find_loop(kernel, self.loop)
        path = path_to(kernel.body, acc) or ()
        if not _same(path_to(kernel.body, loop) or (), path):
            refuse(kernel, f"`{self.loop}` does not stand in the block of `{self.acc}`", node=loop)
        block = kernel.body if not path else path[-1].body  # type: ignore[attr-defined]
        require_loops(kernel, block)
        chain: list[Loop] = []
        for outer in reversed(path):
            if not isinstance(outer, Loop) or (chain and len(outer.body) != 1):
                break
            chain.insert(0, outer)
        for outer in path[: len(path) - len(chain)]:
            if isinstance(outer, Loop) and outer.kind in ("grid", "tile"):
                refuse(
                    kernel,
                    f"the {outer.kind} `{outer.axis.name}` around holds more than this nest",
                    node=outer,
                    hint="`fission` leaves the nest alone in its loops",
                )
        nest = _Nest(tuple(chain), block, acc, loop, self._update(kernel, loop))
        self._begun(kernel, nest)
        self._independent(kernel, nest)
        return nest

    def _update(self, kernel: Kernel, loop: Loop) -> str:
        """The op by which the loop updates `acc`, which is all that it does."""
        found: str | None = None
        for a in accesses((loop,)):
            if a.op == "read" and a.tensor != self.acc:
                continue
            if a.tensor != self.acc or a.op in ("read", "write") or a.op != (found or a.op):
                refuse(
                    kernel,
                    f"`{self.loop}` does more than accumulate into `{self.acc}`",
                    node=a.node,
                )
            found = a.op
        if found is None:
            refuse(kernel, f"`{self.loop}` does not accumulate into `{self.acc}`", node=loop)
        return found

    def _begun(self, kernel: Kernel, nest: _Nest) -> None:
        """Refuse where some of `acc` may have no value: the parts are combined into all of it,
        and even where the loop has no iteration."""
        if nest.acc.init is None:
            refuse(
                kernel,
                f"not all of `{self.acc}` is known to have a value before it is accumulated",
                node=nest.acc,
                hint="give the buffer one where it is declared",
            )

    def _independent(self, kernel: Kernel, nest: _Nest) -> None:
        """Refuse where the loop, or a loop around, reads what the nest writes or declares."""
        rest = tuple(s for s in nest.block if s is not nest.loop)
        own = {s.name for s in rest if isinstance(s, Buffer)}
        own |= {a.tensor for a in accesses(rest) if a.op != "read"}
        inner = {x.axis.name for x in nest.chain}
        heads = [(x, (x.axis.extent, *x.where)) for x in nest.chain]
        reads = [a.node for a in accesses((nest.loop,)) if a.op == "read" and a.tensor in own]
        for _, parts in heads:
            reads += [n for e in parts for n in walk(e) if isinstance(n, Read) and n.tensor in own]
        if nest.chain and reads:
            refuse(kernel, "this is made in the same nest", node=reads[0])
        for x, (extent, *_) in heads:
            if var_names(extent) & inner:
                refuse(kernel, f"the extent of `{x.axis.name}` changes in the nest", node=x)
        if any(var_names(e) & inner for e in nest.acc.shape):
            refuse(kernel, f"the shape of `{self.acc}` changes in the nest", node=nest.acc)

    # --- the edit

    def _part(self, kernel: Kernel, nest: _Nest, part: str, acc: str) -> tuple[Stmt, ...]:
        """The accumulator of one part and the loop over its iterations."""
        loop, parts = nest.loop, const(self.parts)
        index = op("add", op("mul", Var(self.loop), parts), Var(part))
        here: dict[str, Expr] = {self.loop: index}
        exact = divides(kernel, loop.axis.extent, self.parts)
        inside = () if exact else (op("lt", index, loop.axis.extent),)
        where = tuple(substitute(c, here) for c in loop.where)
        body = tuple(substitute(s, here) for s in loop.body)
        if inside and reads_tensors(where):
            where, body = (), guarded(where, body)
        axis = Axis(self.loop, op("cdiv", loop.axis.extent, parts), span=loop.axis.span)
        made = replace(loop, axis=axis, where=inside + where, body=body)
        start = identity(nest.update, nest.acc.type)
        renamed = reindex(made, self.acc, lambda at: at, acc)
        return replace(nest.acc, name=acc, init=start), renamed

    def _around(self, nest: _Nest, part: str, body: Block) -> Loop:
        for x in reversed(nest.chain):
            body = (replace(x, body=body),)
        return Loop("grid", Axis(part, const(self.parts)), (), body)

    def _by_partials(self, kernel: Kernel, nest: _Nest) -> Kernel:
        used = names_in(kernel)
        part = fresh(f"{self.loop}_part", used)
        acc, parts = fresh(f"{self.acc}_part", used), fresh(f"{self.acc}_parts", used)
        dtype, shape = nest.acc.type, nest.acc.shape
        extents = tuple(x.axis.extent for x in nest.chain)
        made = Buffer(parts, dtype, (const(self.parts), *extents, *shape), "global")
        kinds = self._kinds(nest)

        def over(body: Store, names: Sequence[str]) -> Stmt:
            stmt: Stmt = body
            for name, kind, extent in reversed(list(zip(names, kinds, shape, strict=True))):
                stmt = Loop(kind, Axis(name, extent), (), (stmt,))
            return stmt

        def dims() -> list[str]:
            return [fresh(f"{self.acc}_{d}", used) for d in range(len(shape))]

        at = dims()
        here = tuple(Var(d) for d in at)
        keep = over(Store(parts, (Var(part), *nest.indices, *here), Read(acc, here, dtype)), at)
        first = self._around(nest, part, (*self._part(kernel, nest, part, acc), keep))
        copied = {x.axis.name: fresh(x.axis.name, used) for x in nest.chain}
        again, at = fresh(part, used), dims()
        here = tuple(Var(d) for d in at)
        indices = (Var(again), *nest.indices, *here)
        combine = over(Store(self.acc, here, Read(parts, indices, dtype), nest.update), at)
        total = Loop("for", Axis(again, const(self.parts)), (), (combine,))
        if not nest.chain:
            return replace_stmt(kernel, nest.loop, (made, first, total))
        body = tuple(total if s is nest.loop else s for s in nest.block)
        for x in reversed(nest.chain):
            body = (replace(x, body=body),)
        last = rename(body[0], copied, {})
        return replace_stmt(kernel, nest.top, (made, first, last))

    def _kinds(self, nest: _Nest) -> list[LoopKind]:
        """For each dim of the accumulator the kind of the loops that go through it."""
        kinds: dict[str, LoopKind] = {x.axis.name: x.kind for x in loops_of((nest.loop,))}
        found: list[LoopKind] = ["for"] * len(nest.acc.shape)
        for a in accesses((nest.loop,)):
            if a.tensor == self.acc:
                for d, e in enumerate(a.indices):
                    extent = nest.acc.shape[d]
                    if isinstance(e, Var) and isinstance(extent, Const):
                        found[d] = "tile" if kinds.get(e.name) == "tile" else "for"
        return found

    def _by_updates(self, kernel: Kernel, nest: _Nest) -> Kernel:
        loops, store = self._epilogue(kernel, nest)
        assert nest.acc.init is not None
        used = names_in(kernel)
        part, acc = fresh(f"{self.loop}_part", used), fresh(f"{self.acc}_part", used)
        value = store.value
        assert isinstance(value, Read)
        clear: Stmt = replace(store, value=nest.acc.init)
        add: Stmt = replace(store, value=replace(value, tensor=acc), op=nest.update)
        for x in reversed(loops):
            clear, add = replace(x, body=(clear,)), replace(x, body=(add,))
        grid = self._around(nest, part, (*self._part(kernel, nest, part, acc), add))
        for x in reversed(nest.chain):
            clear = replace(x, body=(clear,))
        first = copy_with_fresh_names((clear,), used)
        if nest.chain:
            return replace_stmt(kernel, nest.top, (*first, grid))
        return edit_block(kernel, nest.loop, lambda block, k: (*first, grid))

    def _epilogue(self, kernel: Kernel, nest: _Nest) -> tuple[list[Loop], Store]:
        """The loops around the store of the sums, and the store."""
        if len(nest.block) != 3 or nest.block[0] is not nest.acc or nest.block[1] is not nest.loop:
            refuse(
                kernel,
                f"more stands beside `{self.loop}` than `{self.acc}` and a store of it",
                node=next(s for s in nest.block if s is not nest.acc and s is not nest.loop),
                hint="combine `by = partials`",
            )
        if not isinstance(nest.acc.init, Const):
            refuse(kernel, f"`{self.acc}` does not begin with a constant", node=nest.acc)
        loops: list[Loop] = []
        stmt = nest.block[-1]
        while isinstance(stmt, Loop) and len(stmt.body) == 1:
            loops.append(stmt)
            stmt = stmt.body[0]
        plain = isinstance(stmt, Store) and stmt.op is None and isinstance(stmt.value, Read)
        if not isinstance(stmt, Store) or not plain or stmt.value.tensor != self.acc:  # type: ignore[attr-defined]
            refuse(
                kernel,
                f"this is not a plain store of `{self.acc}`",
                node=stmt,
                hint="combine `by = partials`",
            )
        if any(a.tensor == stmt.target for a in accesses((nest.loop,))):
            refuse(kernel, f"`{stmt.target}` is read while it is accumulated", node=nest.loop)
        if not determines(list(stmt.indices), [*nest.chain, *loops]):
            refuse(kernel, "iterations may store to one element", node=stmt)
        if any(isinstance(n, Read) for x in loops for e in (x.axis.extent, *x.where)
               for n in walk(e)):  # fmt: skip
            refuse(kernel, "what is stored depends on data", node=stmt)
        return loops, stmt

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop that updates a buffer of its own block, both ways, in any number of parts."""
        for acc, loop in updated(kernel):
            if _same(path_to(kernel.body, loop) or (), path_to(kernel.body, acc) or ()):
                for way in cls.WAYS:
                    fixed = (("acc", acc.name), ("loop", loop.axis.name), ("by", way))
                    yield Move(cls.name, fixed, (("parts", Whole(1, None, (4, 2, 8, 16))),))

    def effect_on(self, kernel: Kernel) -> Effect:
        acc, loop = find_buffer(kernel, self.acc), find_loop(kernel, self.loop)
        return regrouping(self._update(kernel, loop), acc.type)

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        """The loops around became two of a kind; `acc`, where it is gone, that of a part."""
        nest = self._nest(before)
        now, used = names_in(after), names_in(before)
        found: dict[str, tuple[str, ...]] = {}
        fresh(f"{self.loop}_part", used)
        part = fresh(f"{self.acc}_part", used)
        if self.acc not in now:
            found[self.acc] = (part,)
        if self.by == "partials":
            fresh(f"{self.acc}_parts", used)
            for d in range(len(nest.acc.shape)):
                fresh(f"{self.acc}_{d}", used)
        for x in nest.chain:
            name = fresh(x.axis.name, used)
            if name in now:
                found[x.axis.name] = (x.axis.name, name)
        return found
