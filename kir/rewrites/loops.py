"""The order of loops: `reorder`, `swizzle`, `fission`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Buffer,
    Const,
    Expr,
    Kernel,
    Loop,
    Read,
    Stmt,
    Store,
    Var,
    substitute,
    walk,
)
from kir.rewrites.base import (
    EFFECTS,
    Block,
    Effect,
    Move,
    Rewrite,
    Whole,
    buffers_of,
    find_loop,
    fresh,
    guarded,
    loops_of,
    names_in,
    path_to,
    refuse,
    reindex,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.rewrites.legality import (
    accesses,
    carried,
    check_grids,
    crossing,
    fission_conflict,
    order_across,
    order_of_updates,
    parallel_conflict,
    reorder_conflict,
    stored_in,
)
from kir.rewrites.split import Split, reads_tensors


@dataclass(frozen=True)
class Reorder(Rewrite):
    """`reorder((a, b, c))`: perfectly nested loops in a new order, outermost first.

    Before::

        for i_o: cdiv(M, 8) { for i: 8 where i_o*8 + i < M { for j: N { ... } } }

    After `reorder((i_o, j, i))`::

        for i_o: cdiv(M, 8) { for j: N { for i: 8 where i_o*8 + i < M { ... } } }

    Loops that are not named keep their place. A mask goes to the outermost loop that is inside
    all the indices it mentions. Refused where an iteration may depend on another one that the
    new order would run later; the order of a reduction may change.
    """

    name: ClassVar[str] = "reorder"
    effect: ClassVar[Effect] = "reassociates"
    loops: tuple[str, ...]

    def edit(self, kernel: Kernel) -> Kernel:
        if len(self.loops) < 2 or len(set(self.loops)) != len(self.loops):
            refuse(kernel, "`reorder` takes two or more different loops")
        chain = self._chain(kernel)
        order = self._order(chain)
        new = self._permuted(kernel, chain, order)
        self._check(kernel, chain, order, new)
        check_grids(kernel, chain[0], new)
        made = replace_stmt(kernel, chain[0], (new,))
        self._check_promises(kernel, chain, made, new)
        return made

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop with the one directly and alone inside it: exchanges of neighbours, one
        after the other, make up every order of a perfect nest."""
        for outer in loops_of(kernel.body):
            inner = outer.body[0] if len(outer.body) == 1 else None
            if isinstance(inner, Loop):
                yield Move("reorder", (("loops", (inner.axis.name, outer.axis.name)),))

    def effect_on(self, kernel: Kernel) -> Effect:
        """Exact unless two loops change places that both go through updates of one element."""
        chain = self._chain(kernel)
        order = self._order(chain)
        for outer, inner in _swapped(chain, order, self._permuted(kernel, chain, order)):
            if order_of_updates(outer) != "exact" and order_of_updates(inner) != "exact":
                return "reassociates"
        return "exact"

    def _order(self, chain: list[Loop]) -> list[str]:
        wanted = iter(self.loops)
        return [next(wanted) if loop.axis.name in self.loops else loop.axis.name for loop in chain]

    def _chain(self, kernel: Kernel) -> list[Loop]:
        """The nest from the outermost named loop to the innermost one."""
        named = [find_loop(kernel, name) for name in self.loops]
        depth = {x.axis.name: len(path_to(kernel.body, x) or ()) for x in named}
        top = min(named, key=lambda x: depth[x.axis.name])
        missing = set(self.loops) - {top.axis.name}
        chain = [top]
        while missing:
            body = chain[-1].body
            if len(body) != 1 or not isinstance(body[0], Loop):
                lost = ", ".join(f"`{n}`" for n in self.loops if n in missing)
                refuse(
                    kernel,
                    f"{lost}: not perfectly nested under `{chain[-1].axis.name}`",
                    node=chain[-1],
                    hint="`fission` takes what stands between the loops apart",
                )
            chain.append(body[0])
            missing.discard(body[0].axis.name)
        return chain

    def _permuted(self, kernel: Kernel, chain: list[Loop], order: list[str]) -> Loop:
        for loop in chain:
            if stored_in(loop.where, chain[-1].body):
                refuse(kernel, "a mask reads what the body stores", node=loop)
        by_name = {loop.axis.name: loop for loop in chain}
        for depth, name in enumerate(order):
            late = var_names(by_name[name].axis.extent) & set(order[depth:])
            if late:
                refuse(
                    kernel,
                    f"the extent of `{name}` depends on `{min(late)}`, which would be inside it",
                    node=by_name[name],
                )
        masks: dict[str, list[Expr]] = {name: [] for name in order}
        body = chain[-1].body
        for loop in reversed(chain):
            if reads_tensors(loop.where):  # in bounds, perhaps, only under masks around it
                body = guarded(loop.where, body)
        for loop in chain:
            for c in () if reads_tensors(loop.where) else loop.where:
                depths = [k for k, name in enumerate(order) if name in var_names(c)]
                masks[order[max(depths, default=0)]].append(c)
        for name in reversed(order):
            body = (replace(by_name[name], where=tuple(masks[name]), body=body),)
        made = body[0]
        assert isinstance(made, Loop)
        return made

    def _check(self, kernel: Kernel, chain: list[Loop], order: list[str], new: Loop) -> None:
        """Of two loops that change places, the one that was outside must carry nothing, or the
        one that comes outside must carry nothing there."""
        for outer, inner in _swapped(chain, order, new):
            if carried(outer) is None or carried(inner) is None:
                continue
            by_name = {x.axis.name: x for x in chain}
            found = reorder_conflict(kernel, chain, [by_name[n] for n in order])
            if found:
                a, b = outer.axis.name, inner.axis.name
                refuse(kernel, f"`{a}` and `{b}` cannot change places: {found}", node=outer)
            return

    def _check_promises(self, kernel: Kernel, chain: list[Loop], made: Kernel, new: Loop) -> None:
        """A grid or tile that comes around other loops carries no dependence there either."""
        moved = {inner.axis.name: inner for _, inner in _swapped(chain, self._order(chain), new)}
        for loop in chain:
            inner = moved.get(loop.axis.name)
            if inner is not None and inner.kind in ("grid", "tile"):
                found = parallel_conflict(made, inner)
                if found:
                    message = f"around other loops `{inner.axis.name}` would carry a dependence"
                    refuse(kernel, f"{message}: {found}", node=loop)


def _swapped(chain: list[Loop], order: list[str], new: Loop) -> Iterator[tuple[Loop, Loop]]:
    """Pairs of loops that change places: the outer one as it was, the inner one as it will be."""
    inside = {x.axis.name: x for x in walk(new) if isinstance(x, Loop)}
    for depth, outer in enumerate(chain):
        for inner in chain[depth + 1 :]:
            if order.index(outer.axis.name) > order.index(inner.axis.name):
                yield outer, inside[inner.axis.name]


@dataclass(frozen=True)
class Swizzle(Rewrite):
    """`swizzle(i, j, group)`: the programs of two grid loops run in groups of rows, and column by
    column within a group, so that programs which run at once share what they read.

    Before::

        grid i: M { grid j: N { ... } }

    After `swizzle(i, j, 4)`::

        grid i_o: cdiv(M, 4) { grid j: N { grid i: 4 where i_o*4 + i < M { ... } } }

    The last group may be lower: its missing rows are masked out (no mask where `group` divides
    the extent). It is `split(i, group)` and `reorder((i_o, j, i))`, for perfectly nested grids.
    """

    name: ClassVar[str] = "swizzle"
    effect: ClassVar[Effect] = "reassociates"
    rows: str
    columns: str
    group: int

    def edit(self, kernel: Kernel) -> Kernel:
        split, reorder = self._parts(kernel)
        return reorder.edit(split.edit(kernel))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every pair of grid loops, one directly inside the other."""
        for i in loops_of(kernel.body):
            j = i.body[0] if len(i.body) == 1 else None
            if i.kind == "grid" and isinstance(j, Loop) and j.kind == "grid":
                fixed = (("rows", i.axis.name), ("columns", j.axis.name))
                yield Move("swizzle", fixed, (("group", Whole(1, None, (8, 4, 16, 2))),))

    def effect_on(self, kernel: Kernel) -> Effect:
        return order_of_updates(find_loop(kernel, self.rows))

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return self._parts(before)[0].forward(before, after)

    def _parts(self, kernel: Kernel) -> tuple[Split, Reorder]:
        i, j = find_loop(kernel, self.rows), find_loop(kernel, self.columns)
        for x in (i, j):
            if x.kind != "grid":
                refuse(kernel, f"`{x.axis.name}` is a {x.kind}, no grid", node=x)
        if len(i.body) != 1 or i.body[0] is not j:
            message = f"`{self.columns}` is not directly and alone inside `{self.rows}`"
            refuse(kernel, message, node=i, hint="`reorder` brings the two together")
        if self.rows in var_names(j.axis.extent):
            message = f"the extent of `{self.columns}` depends on `{self.rows}`"
            refuse(kernel, message, node=j)
        if self.group < 1:
            refuse(kernel, f"a group cannot have {self.group} rows", node=i)
        outer = fresh(f"{self.rows}_o", names_in(kernel))
        order = (outer, self.columns, self.rows)
        return Split(self.rows, self.group, outer), Reorder(order)


@dataclass(frozen=True)
class Fission(Rewrite):
    """`fission(i, after = k)`: a loop is distributed over the statements of its body.

    Before::

        for i: 128 {
          buffer acc: f32[] in reg = 0
          for k: K { acc += x[i, k] }
          y[i] = acc
        }

    After::

        buffer acc: f32[128] in reg = 0
        for i: 128 { for k: K { acc[i] += x[i, k] } }
        for i_2: 128 { y[i_2] = acc[i_2] }

    A buffer that more than one piece uses gets an axis for `i`. Each piece keeps kind, mask and
    hints; the first keeps the name. By itself it cuts wherever it may, so there are as many
    pieces as can be; with `after = k` it cuts behind the loop `k` of the body alone, with
    `after = (k, l)` behind both. Refused where a statement before the cut needs what one behind
    it stores in an earlier iteration.
    """

    name: ClassVar[str] = "fission"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    after: str | tuple[str, ...] | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop, inits, pieces = self._parts(kernel)
        made: list[Stmt] = list(inits)
        for name, piece in zip(self._names(kernel, pieces), pieces, strict=True):
            here: dict[str, Expr] = {self.loop: Var(name)}
            fixed = piece if name == self.loop else substitute(piece, here)
            made.append(replace(fixed, axis=replace(piece.axis, name=name)))
        return replace_stmt(kernel, loop, made)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop with more than one statement: cut everywhere, and behind each loop in its
        body (several cuts are the same as one after the other)."""
        for loop in loops_of(kernel.body):
            others = [s for s in loop.body if not isinstance(s, Buffer)]
            fixed = (("loop", loop.axis.name),)
            if len(others) > 1:
                yield Move("fission", fixed)
                for s in others[:-1]:
                    if isinstance(s, Loop):
                        yield Move("fission", (*fixed, ("after", s.axis.name)))

    def effect_on(self, kernel: Kernel) -> Effect:
        """Exact unless two pieces update one element."""
        pieces = self._parts(kernel)[2]
        found = (order_across(a, b) for k, a in enumerate(pieces) for b in pieces[k + 1 :])
        return max(found, key=EFFECTS.index, default="exact")

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {self.loop: tuple(self._names(before, self._parts(before)[2]))}

    def _names(self, kernel: Kernel, pieces: list[Loop]) -> list[str]:
        used = names_in(kernel)
        return [self.loop if k == 0 else fresh(self.loop, used) for k in range(len(pieces))]

    def _parts(self, kernel: Kernel) -> tuple[Loop, list[Buffer], list[Loop]]:
        """The loop, the buffers that come to stand in front, and the loops it becomes, all with
        the index of the old one."""
        loop = find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        if stored_in((*loop.where, loop.axis.extent), loop.body):
            message = f"the mask of `{self.loop}` reads what its body stores, or its extent does"
            refuse(kernel, message, node=loop)
        self._check_inits(kernel, loop)
        groups = self._groups(kernel, loop)
        if len(groups) < 2:
            refuse(kernel, f"the body of `{self.loop}` is one piece already", node=loop)
        bad = self._uncuttable(kernel, loop, groups)
        if bad and (self.after is not None or len(bad) == len(groups) - 1):
            start, why = next(iter(bad.items()))
            node = groups[start][0]
            refuse(kernel, f"the body of `{self.loop}` hangs together: {why}", node=node)
        joined: list[Block] = []
        for k, group in enumerate(groups):
            if k in bad:
                joined[-1] += group
            else:
                joined.append(group)
        expanded, inits, pieces = self._pieces(loop, joined)
        for b in inits:
            self._check_buffer(kernel, loop, b)
        return loop, [self._expanded(b, loop) for b in inits], self._loops(loop, expanded, pieces)

    def _loops(self, loop: Loop, expanded: list[str], pieces: list[Block]) -> list[Loop]:
        def index(old: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return (Var(self.loop), *old)

        for name in expanded:
            pieces = [tuple(reindex(s, name, index, name) for s in p) for p in pieces]
        return [replace(loop, body=p) for p in pieces]

    def _uncuttable(self, kernel: Kernel, loop: Loop, groups: list[Block]) -> dict[int, str]:
        """The groups before which there can be no cut, with the dependence across it."""
        expanded, _, pieces = self._pieces(loop, groups)
        loops = self._loops(loop, expanded, pieces)[len(pieces) - len(groups) :]
        doubtful = {
            k
            for q, second in enumerate(loops)
            for p, first in enumerate(loops[:q])
            if crossing(first, second)
            for k in range(p + 1, q + 1)
        }
        bad: dict[int, str] = {}
        for k in sorted(doubtful):
            at = next(n for n, s in enumerate(loop.body) if s is groups[k][0])
            why = fission_conflict(kernel, loop, at)
            if why:
                bad[k] = why
        return bad

    def _groups(self, kernel: Kernel, loop: Loop) -> list[Block]:
        """The statements other than buffers, as they are to be kept together."""
        others = tuple(s for s in loop.body if not isinstance(s, Buffer))
        if self.after is None:
            return [(s,) for s in others]
        last = {self.after} if isinstance(self.after, str) else set(self.after)
        groups: list[Block] = [()]
        for s in others:
            groups[-1] += (s,)
            if isinstance(s, Loop) and s.axis.name in last:
                last.discard(s.axis.name)
                groups.append(())
        if last:
            message = f"`{self.loop}` has no loop `{min(last)}` in its body"
            refuse(kernel, message, node=loop)
        return [g for g in groups if g]

    def _pieces(
        self, loop: Loop, groups: list[Block]
    ) -> tuple[list[str], list[Buffer], list[Block]]:
        """Names of the buffers to expand, these buffers, and the pieces: the groups, after
        stores for inits that are not constant."""
        users = [{a.tensor for a in accesses(g)} for g in groups]
        shared: list[Buffer] = []
        stores: list[Block] = []
        mine: list[list[Stmt]] = [[] for _ in groups]
        for b in loop.body:
            if not isinstance(b, Buffer):
                continue
            found = [k for k, names in enumerate(users) if b.name in names]
            if len(found) == 1:
                mine[found[0]].append(b)
            if len(found) < 2:
                continue
            shared.append(b)
            if not _constant(b) and b.init is not None:
                stores.append((Store(b.name, (), b.init, span=b.span),))
        pieces = [(*own, *g) for own, g in zip(mine, groups, strict=True)]
        return [b.name for b in shared], shared, [*stores, *pieces]

    def _expanded(self, b: Buffer, loop: Loop) -> Buffer:
        shape = (loop.axis.extent, *b.shape)
        return replace(b, shape=shape, init=b.init if _constant(b) else None)

    def _check_inits(self, kernel: Kernel, loop: Loop) -> None:
        """What buffers are set to is the same wherever in the iteration they come to stand."""
        changing = {a.tensor for a in accesses((loop,)) if a.op != "read"}
        changing |= {b.name for b in buffers_of(loop.body)}
        for b in loop.body:
            if isinstance(b, Buffer) and b.init is not None:
                reads = {n.tensor for n in walk(b.init) if isinstance(n, Read)}
                if reads & changing:
                    refuse(kernel, f"the init of `{b.name}` is computed in the loop", node=b)

    def _check_buffer(self, kernel: Kernel, loop: Loop, b: Buffer) -> None:
        if any(self.loop in var_names(e) for e in b.shape):
            refuse(kernel, f"the shape of `{b.name}` depends on `{self.loop}`", node=b)
        if loop.kind == "grid" and b.space != "global":
            refuse(
                kernel,
                f"`{b.name}` in {b.space} is one program's, and the pieces would share it",
                node=b,
                hint=f"`set_space({b.name}, global)`",
            )
        if b.space == "reg" and not isinstance(loop.axis.extent, Const):
            refuse(
                kernel,
                f"`{b.name}` in reg would get an axis of an extent that is not constant",
                node=b,
                hint=f"split the loop, or `set_space({b.name}, local)`",
            )
        if b.shape and not _constant(b):
            refuse(kernel, f"the init of `{b.name}` is computed in the loop", node=b)


def _constant(b: Buffer) -> bool:
    return b.init is None or not any(isinstance(n, Var | Read) for n in walk(b.init))
