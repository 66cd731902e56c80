"""Rewrites of loops: `split`, `reorder`, `fuse`, `fission`, `bind`, `unroll`, `hint`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    LOOP_KINDS,
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    Kernel,
    Loop,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    const,
    substitute,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Rewrite,
    buffers_of,
    copy_with_fresh_names,
    edit_block,
    extent_of,
    find_loop,
    fresh,
    guarded,
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
    conflict,
    crossing,
    fission_conflict,
    fusion_conflict,
    parallel_conflict,
    reorder_conflict,
    stored_in,
)
from kir.simplify import linear, simplify

UNROLL_LIMIT = 4096
"""The most statements `unroll` may make."""


@dataclass(frozen=True)
class Split(Rewrite):
    """`split(i, factor, outer = name, inner = name)`: one loop becomes two.

    Before::

        for i: N { y[i] = x[i] }

    After `split(i, 8)`::

        for i_o: cdiv(N, 8) {
          for i: 8 where i_o*8 + i < N { y[i_o*8 + i] = x[i_o*8 + i] }
        }

    The mask is left out where the factor provably divides the extent. Both loops are of the
    old one's kind; its hints stay on the outer one.
    """

    name: ClassVar[str] = "split"
    effect: ClassVar[Effect] = "exact"
    loop: str
    factor: int
    outer: str | None = None
    inner: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if self.factor < 1:
            refuse(kernel, f"a loop cannot be split by {self.factor}", node=loop)
        if any(isinstance(n, Define) and Var(self.loop) in n.dims for n in walk(loop)):
            require_loops(kernel, (loop,))  # a recurrence is defined over this very index
        used = names_in(kernel) - {self.loop}
        for chosen in (self.outer, self.inner):
            if chosen is not None and chosen in used:
                refuse(kernel, f"the name `{chosen}` is taken", node=loop)
        inner = self.inner or self.loop
        used.add(inner)
        outer = self.outer or fresh(f"{self.loop}_o", used)
        if outer == inner:
            refuse(kernel, "the two loops cannot have one name", node=loop)
        extent = loop.axis.extent
        index = op("add", op("mul", Var(outer), const(self.factor)), Var(inner))
        mask = () if divides(kernel, extent, self.factor) else (op("lt", index, extent),)
        here: dict[str, Expr] = {self.loop: index}
        where = tuple(substitute(c, here) for c in loop.where)
        body = tuple(substitute(s, here) for s in loop.body)
        if mask and reads_tensors(where):  # these reads may be in bounds under the mask only
            where, body = (), guarded(where, body)
        below = Loop(loop.kind, Axis(inner, const(self.factor)), mask + where, body, span=loop.span)
        axis = Axis(outer, op("cdiv", extent, const(self.factor)), span=loop.axis.span)
        above = Loop(loop.kind, axis, (), (below,), loop.hints, span=loop.span)
        return replace_stmt(kernel, loop, (above,))


def reads_tensors(conditions: Iterable[Expr]) -> bool:
    return any(isinstance(n, Read) for c in conditions for n in walk(c))


def divides(kernel: Kernel, extent: Expr, factor: int) -> bool:
    """Whether `factor` divides `extent` by its form or by a constraint `N % c == 0`."""
    form = linear(simplify(extent))
    if form.constant % factor:
        return False
    known = dict[Expr, int]()
    for c in kernel.constraints:
        match c:
            case Op("eq", (Op("mod", (value, Const(modulus))), Const(0))) if int(modulus) > 0:
                known[value] = max(known.get(value, 1), int(modulus))
    return known.get(extent, 1) % factor == 0 or all(
        (c * known.get(atom, 1)) % factor == 0 for atom, c in form.terms.items()
    )


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
        wanted = iter(self.loops)
        order = [next(wanted) if loop.axis.name in self.loops else loop.axis.name for loop in chain]
        new = self._permuted(kernel, chain, order)
        self._check(kernel, chain, order, new)
        return replace_stmt(kernel, chain[0], (new,))

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
        inside = {x.axis.name: x for x in walk(new) if isinstance(x, Loop)}
        for depth, outer in enumerate(chain):
            for inner in chain[depth + 1 :]:
                a, b = outer.axis.name, inner.axis.name
                if order.index(a) < order.index(b):
                    continue
                if carried(outer) is None or carried(inside[b]) is None:
                    continue
                by_name = {x.axis.name: x for x in chain}
                found = reorder_conflict(kernel, chain, [by_name[n] for n in order])
                if found:
                    refuse(kernel, f"`{a}` and `{b}` cannot change places: {found}", node=outer)
                return


@dataclass(frozen=True)
class Fuse(Rewrite):
    """`fuse(i, j)`: two loops of one block, equal in extent and kind, become one, called `i`.

    Before::

        for i: M { a[i] = x[i] }
        for j: M { y[j] = a[j] }

    After::

        for i: M {
          a[i] = x[i]
          y[i] = a[i]
        }

    Statements between them move before or behind where they are independent. Masks that differ
    become guards. Refused where an iteration of `j` needs a later one of `i`.
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = "exact"
    loop: str
    second: str

    def edit(self, kernel: Kernel) -> Kernel:
        a, b = find_loop(kernel, self.loop), find_loop(kernel, self.second)
        if a is b or a.kind != b.kind:
            what = "the same loop" if a is b else "of different kinds; `bind` them alike first"
            refuse(kernel, f"`{self.loop}` and `{self.second}` are {what}", node=b)
        if simplify(a.axis.extent) != simplify(b.axis.extent):
            refuse(kernel, "the extents of the two loops differ", node=b)

        def edit(block: Block, k: int) -> Sequence[Stmt]:
            at = next((n for n, s in enumerate(block) if s is b), None)
            if at is None or at < k:
                refuse(
                    kernel,
                    f"`{self.second}` does not follow `{self.loop}` in its block",
                    node=b,
                    hint="loops around them are fused first",
                )
            found = fusion_conflict(kernel, a, b)
            if found:
                refuse(kernel, f"`{self.second}` must wait for `{self.loop}`: {found}", node=b)
            before, after = self._moved(kernel, a, b, block[k + 1 : at])
            return (*block[:k], *before, self._joined(a, b), *after, *block[at + 1 :])

        return edit_block(kernel, a, edit)

    def _moved(self, kernel: Kernel, a: Loop, b: Loop, between: Block) -> tuple[Block, Block]:
        before: list[Stmt] = []
        after: list[Stmt] = []
        for s in between:
            blocked = conflict((s,), (a, *after)) or conflict((a, *after), (s,))
            if not blocked:
                before.append(s)
            else:
                stays = conflict((s,), (b,)) or conflict((b,), (s,))
                if stays:
                    refuse(kernel, f"this stands between the two loops: {stays}", node=s)
                after.append(s)
        return tuple(before), tuple(after)

    def _joined(self, a: Loop, b: Loop) -> Loop:
        here: dict[str, Expr] = {b.axis.name: Var(a.axis.name)}
        where = tuple(substitute(c, here) for c in b.where)
        body = tuple(substitute(s, here) for s in b.body)
        hints = tuple(dict((*b.hints, *a.hints)).items())
        if where == a.where and not stored_in(where, a.body):
            return replace(a, body=a.body + body, hints=hints)
        both = (*guarded(a.where, a.body), *guarded(where, body))
        return replace(a, where=(), body=both, hints=hints)


@dataclass(frozen=True)
class Fission(Rewrite):
    """`fission(i)`: a loop is distributed over the statements of its body.

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
    hints; the first keeps the name. With `after = k` there are two pieces, and the first ends
    with the loop `k`. Refused where a piece needs a later iteration's result of one that follows.
    """

    name: ClassVar[str] = "fission"
    effect: ClassVar[Effect] = "exact"
    loop: str
    after: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        if stored_in(loop.where, loop.body):
            refuse(kernel, f"the mask of `{self.loop}` reads what its body stores", node=loop)
        groups = self._groups(kernel, loop)
        expanded, inits, pieces = self._pieces(kernel, loop, groups)
        if len(pieces) < 2:
            refuse(kernel, f"the body of `{self.loop}` is one piece already", node=loop)

        def index(old: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return (Var(self.loop), *old)

        for name in expanded:
            pieces = [tuple(reindex(s, name, index, name) for s in p) for p in pieces]
        loops = [replace(loop, body=p) for p in pieces]
        starts = [g[0] for g in groups]
        for k, start in enumerate(starts, len(pieces) - len(groups)):
            if any(crossing(first, loops[k]) for first in loops[:k]):
                at = next(n for n, s in enumerate(loop.body) if s is start)
                found = fission_conflict(kernel, loop, at)
                if found:
                    refuse(kernel, f"the body of `{self.loop}` hangs together: {found}", node=start)
        used = names_in(kernel)
        made: list[Stmt] = list(inits)
        for k, piece in enumerate(loops):
            name = self.loop if k == 0 else fresh(self.loop, used)
            here: dict[str, Expr] = {self.loop: Var(name)}
            fixed = piece if k == 0 else substitute(piece, here)
            made.append(replace(fixed, axis=replace(piece.axis, name=name)))
        return replace_stmt(kernel, loop, made)

    def _groups(self, kernel: Kernel, loop: Loop) -> list[Block]:
        """The statements other than buffers, as they are to be kept together."""
        others = tuple(s for s in loop.body if not isinstance(s, Buffer))
        if self.after is None:
            return [(s,) for s in others]
        for k, s in enumerate(others):
            if isinstance(s, Loop) and s.axis.name == self.after:
                return [g for g in (others[: k + 1], others[k + 1 :]) if g]
        return refuse(kernel, f"`{self.loop}` has no loop `{self.after}` in its body", node=loop)

    def _pieces(
        self, kernel: Kernel, loop: Loop, groups: list[Block]
    ) -> tuple[list[str], list[Buffer], list[Block]]:
        """Names of the buffers to expand, their declarations expanded, and the pieces: the
        groups, after stores for inits that are not constant."""
        users = [{a.tensor for a in accesses(g)} for g in groups]
        inits: list[Buffer] = []
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
            self._check_buffer(kernel, loop, b)
            constant = _constant(b)
            shape = (loop.axis.extent, *b.shape)
            inits.append(replace(b, shape=shape, init=b.init if constant else None))
            if not constant and b.init is not None:
                stores.append((Store(b.name, (), b.init, span=b.span),))
        pieces = [(*own, *g) for own, g in zip(mine, groups, strict=True)]
        return [b.name for b in inits], inits, [*stores, *pieces]

    def _check_buffer(self, kernel: Kernel, loop: Loop, b: Buffer) -> None:
        if any(self.loop in var_names(e) for e in b.shape):
            refuse(kernel, f"the shape of `{b.name}` depends on `{self.loop}`", node=b)
        if b.space == "reg" and not isinstance(loop.axis.extent, Const):
            refuse(
                kernel,
                f"`{b.name}` in reg would get an axis of an extent that is not constant",
                node=b,
                hint=f"split the loop, or `set_space({b.name}, local)`",
            )
        if not _constant(b):
            reads = {n.tensor for e in (b.init,) if e for n in walk(e) if isinstance(n, Read)}
            written = {a.tensor for a in accesses((loop,)) if a.op != "read"}
            held = {x.name for x in buffers_of((loop,))}
            if b.shape or reads & (written | held):
                refuse(kernel, f"the init of `{b.name}` is computed in the loop", node=b)


def _constant(b: Buffer) -> bool:
    return b.init is None or not any(isinstance(n, Var | Read) for n in walk(b.init))


@dataclass(frozen=True)
class Bind(Rewrite):
    """`bind(i, kind)`: makes a loop a `for`, `grid`, `tile` or `unroll`.

    Before::

        for i: M { y[i] = x[i] }

    After `bind(i, grid)`::

        grid i: M { y[i] = x[i] }

    The promise is checked: `grid` and `tile` must carry no dependence (recognised reductions
    aside), `tile` and `unroll` have a constant extent, and a `grid` stands under `grid`s, or
    under a `for` of the host.
    """

    name: ClassVar[str] = "bind"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    kind: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if self.kind not in LOOP_KINDS:
            refuse(kernel, f"`{self.kind}` is no kind of loop", hint=", ".join(LOOP_KINDS))
        if self.kind in ("tile", "unroll") and extent_of(loop) is None:
            refuse(
                kernel,
                f"the extent of `{self.loop}` is not constant, as `{self.kind}` needs",
                node=loop,
                hint=f"`split({self.loop}, 64)` gives an inner loop of constant extent",
            )
        if self.kind in ("grid", "tile"):
            found = parallel_conflict(kernel, loop)
            if found:
                refuse(
                    kernel,
                    f"`{self.loop}` carries a dependence: {found}",
                    node=loop,
                    hint="leave it a `for`; bind another loop, or split this one by `fission`",
                )
        if self.kind == "grid":
            self._check_grid(kernel, loop)
        return replace_stmt(kernel, loop, (replace(loop, kind=self.kind),))

    def _check_grid(self, kernel: Kernel, loop: Loop) -> None:
        around = [s for s in path_to(kernel.body, loop) or () if isinstance(s, Loop)]
        kinds = [s.kind for s in around]
        inner = next((k for k, kind in enumerate(kinds) if kind == "grid"), len(kinds))
        if any(k in ("tile", "unroll") for k in kinds) or "for" in kinds[inner:]:
            refuse(kernel, f"a grid cannot stand inside a {kinds[-1]}", node=loop)
        held = {b.name: b for b in buffers_of(kernel.body) if b.space != "global"}
        for access in accesses((loop,)):
            if access.tensor in held:
                refuse(
                    kernel,
                    f"`{access.tensor}` is in {held[access.tensor].space}, outside of the grid",
                    node=held[access.tensor],
                    hint="`contract` moves a buffer into the loops that use it",
                )


@dataclass(frozen=True)
class Unroll(Rewrite):
    """`unroll(i)`: a loop of constant extent becomes copies of its body.

    Before::

        for i: 2 { y[i] = x[i] }

    After::

        y[0] = x[0]
        y[1] = x[1]

    Loops and buffers inside get fresh names in all copies but the first.
    """

    name: ClassVar[str] = "unroll"
    effect: ClassVar[Effect] = "exact"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        extent = extent_of(loop)
        if extent is None:
            refuse(kernel, f"the extent of `{self.loop}` is not constant", node=loop)
        require_loops(kernel, (loop,))
        size = sum(isinstance(n, Stmt) for n in walk(loop)) - 1
        if extent * size > UNROLL_LIMIT:
            refuse(kernel, f"unrolling would make {extent * size} statements", node=loop)
        used = names_in(kernel)
        made: list[Stmt] = []
        for k in range(extent):
            body = loop.body if k == 0 else copy_with_fresh_names(loop.body, used)
            here: dict[str, Expr] = {self.loop: const(k)}
            where = tuple(substitute(c, here) for c in loop.where)
            made.extend(guarded(where, tuple(substitute(s, here) for s in body)))
        return replace_stmt(kernel, loop, made)


@dataclass(frozen=True)
class Hint(Rewrite):
    """`hint(i, name, value)`: a hint on a loop; backends may heed it, results never change.

    Before::

        grid i: M { ... }

    After `hint(i, num_warps, 8)`::

        grid i: M hint(num_warps = 8) { ... }
    """

    name: ClassVar[str] = "hint"
    effect: ClassVar[Effect] = "exact"
    loop: str
    key: str
    value: int

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        hints = {**dict(loop.hints), self.key: self.value}
        return replace_stmt(kernel, loop, (replace(loop, hints=tuple(hints.items())),))
