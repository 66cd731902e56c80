"""Rewrites of buffers: `contract`, `set_space`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    SPACES,
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Space,
    Stmt,
    Store,
    Var,
    const,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Rewrite,
    edit_block,
    find_buffer,
    loops_of,
    path_to,
    refuse,
    reindex,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.simplify import linear, simplify


def check_space(kernel: Kernel, space: str, node: Node | None = None) -> Space:
    if space not in SPACES:
        refuse(kernel, f"`{space}` is no memory space", node=node, hint=", ".join(SPACES))
    return space


@dataclass(frozen=True)
class SetSpace(Rewrite):
    """`set_space(buffer, space)`: keeps a buffer where it is, in another memory space.

    Before::

        buffer e: f32[N] in global

    After `set_space(e, local)`::

        buffer e: f32[N] in local
    """

    name: ClassVar[str] = "set_space"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    space: str

    def edit(self, kernel: Kernel) -> Kernel:
        buffer = find_buffer(kernel, self.buffer)
        space = check_space(kernel, self.space, buffer)
        check_grid(kernel, buffer, space)
        return replace_stmt(kernel, buffer, (replace(buffer, space=space),))


def check_grid(kernel: Kernel, buffer: Buffer, space: str) -> None:
    """Refuse a `local` or `reg` buffer that a grid inside its block would share."""
    if space == "global":
        return
    for loop in loops_of(kernel.body):
        if loop.kind == "grid" and any(a.tensor == buffer.name for a in accesses((loop,))):
            refuse(
                kernel,
                f"`{buffer.name}` is used inside the grid `{loop.axis.name}`, so it is global",
                node=buffer,
                hint="`contract` moves it inside",
            )


@dataclass(frozen=True)
class Contract(Rewrite):
    """`contract(buffer, space)`: a temporary moves into the loops around all its uses, and loses
    the dims that only these loops index.

    Before::

        buffer m: f32[M] in global
        for i: M {
          m[i] = x[i, 0]
          y[i] = m[i]
        }

    After `contract(m, reg)`::

        for i: M {
          buffer m: f32[] in reg
          m = x[i, 0]
          y[i] = m
        }

    Refused where an iteration may use what another one stored.
    """

    name: ClassVar[str] = "contract"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    space: str

    def edit(self, kernel: Kernel) -> Kernel:
        buffer = find_buffer(kernel, self.buffer)
        space = check_space(kernel, self.space, buffer)
        if buffer.init is not None and any(isinstance(n, Read) for n in walk(buffer.init)):
            refuse(kernel, f"`{self.buffer}` is set from a tensor where it stands", node=buffer)
        block = _block_of(kernel.body, buffer)
        require_loops(kernel, block)
        path = self._path(block)
        for depth in range(len(path), -1, -1):
            if depth and not isinstance(path[depth - 1], Loop):
                continue
            inside = path[:depth]
            dropped = self._droppable(buffer, block, inside)
            rest = block if not inside else inside[-1].body
            if self._private(buffer, dropped, inside, rest):
                if not inside and not dropped and space == buffer.space:
                    break
                return self._moved(kernel, buffer, space, inside, dropped)
        return refuse(
            kernel,
            f"`{self.buffer}` cannot move inwards: what it holds is used by other iterations",
            node=buffer,
            hint="fuse the loops that write and read it first",
        )

    def _path(self, block: Block) -> list[Loop | If]:
        """The loops and guards around all uses, from the buffer's block inwards."""
        path: list[Loop | If] = []
        while True:
            users = [s for s in block if any(a.tensor == self.buffer for a in accesses((s,)))]
            if len(users) != 1 or not isinstance(users[0], Loop | If):
                return path
            head = users[0].where if isinstance(users[0], Loop) else (users[0].condition,)
            if any(isinstance(n, Read) and n.tensor == self.buffer for e in head for n in walk(e)):
                return path
            path.append(users[0])
            block = users[0].body

    def _droppable(
        self, buffer: Buffer, block: Block, path: Sequence[Loop | If]
    ) -> dict[int, Expr]:
        """Dims indexed alike by every access, through indices of `path` and loops outside."""
        uses = [a for a in accesses(_after(block, buffer)) if a.tensor == buffer.name]
        here = {p.axis.name: p for p in path if isinstance(p, Loop)}
        inner = {x.axis.name for x in loops_of(block)} - set(here)
        found: dict[int, Expr] = {}
        for d, extent in enumerate(buffer.shape):
            exprs = {a.indices[d] for a in uses}
            if len(exprs) != 1:
                continue
            (expr,) = exprs
            if var_names(expr) & inner or any(isinstance(n, Read) for n in walk(expr)):
                continue
            padded = any(isinstance(a.node, Read) and a.node.fill is not None for a in uses)
            whole = isinstance(expr, Var) and expr.name in here
            if padded and not (whole and here[_name(expr)].axis.extent == extent):
                continue
            found[d] = expr
        return found

    def _private(
        self, buffer: Buffer, dropped: dict[int, Expr], path: Sequence[Loop | If], block: Block
    ) -> bool:
        """Whether an iteration of the loops of `path` uses nothing that another one stored."""
        loops = [p for p in path if isinstance(p, Loop)]
        if determines(list(dropped.values()), loops):
            return True
        kept = {d: e for d, e in enumerate(buffer.shape) if d not in dropped}
        for stmt in block:
            if any(a.tensor == buffer.name for a in accesses((stmt,))):
                return fills(stmt, buffer.name, kept)
        return True

    def _moved(
        self,
        kernel: Kernel,
        buffer: Buffer,
        space: Space,
        path: Sequence[Loop | If],
        dropped: dict[int, Expr],
    ) -> Kernel:
        def index(old: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return tuple(e for d, e in enumerate(old) if d not in dropped)

        shape = tuple(e for d, e in enumerate(buffer.shape) if d not in dropped)
        made = replace(buffer, shape=shape, space=space)
        check_grid(replace(kernel, body=path[-1].body) if path else kernel, buffer, space)

        def into(block: Block) -> Block:
            at = next(
                k
                for k, s in enumerate(block)
                if any(a.tensor == buffer.name for a in accesses((s,)))
            )
            done = tuple(reindex(s, buffer.name, index, buffer.name) for s in block)
            return (*done[:at], made, *done[at:])

        def descend(block: Block, depth: int) -> Block:
            if depth == len(path):
                return into(block)
            target = path[depth]
            return tuple(
                replace(target, body=descend(target.body, depth + 1)) if s is target else s
                for s in block
            )

        def edit(block: Block, k: int) -> Block:
            rest = _after(block, buffer)
            if not any(a.tensor == buffer.name for a in accesses(rest)):
                return block[:k] + rest
            return block[:k] + descend(rest, 0)

        return edit_block(kernel, buffer, edit)


def _name(e: Expr) -> str:
    assert isinstance(e, Var)
    return e.name


def _after(block: Block, buffer: Buffer) -> Block:
    at = next((k for k, s in enumerate(block) if s is buffer), -1)
    return block[at + 1 :]


def _block_of(body: Block, stmt: Stmt) -> Block:
    around = path_to(body, stmt)
    assert around is not None
    if not around:
        return body
    last = around[-1]
    assert isinstance(last, Loop | If)
    return last.body


def determines(indices: Sequence[Expr], loops: Sequence[Loop]) -> bool:
    """Whether different iterations of `loops` give different `indices`: each loop's index can be
    told from them (`i`, or `i_o*8 + i` with i < 8)."""
    unknown = {x.axis.name: x.axis.extent for x in loops if x.axis.extent != const(1)}
    changed = True
    while unknown and changed:
        changed = False
        for e in indices:
            form = linear(e)
            mine = {a.name: c for a, c in form.terms.items() if isinstance(a, Var)}
            mine = {n: c for n, c in mine.items() if n in unknown}
            others = [a for a in form.terms if not isinstance(a, Var)]
            if not mine or any(var_names(a) & set(unknown) for a in others):
                continue
            if _mixed_radix(mine, unknown):
                for n in mine:
                    del unknown[n]
                changed = True
    return not unknown


def _mixed_radix(coefficients: dict[str, int], extents: dict[str, Expr]) -> bool:
    reach = 0
    ordered = sorted(coefficients.items(), key=lambda t: (abs(t[1]), t[0]))
    for k, (name, c) in enumerate(ordered):
        extent = extents[name]
        if abs(c) <= reach:
            return False
        if isinstance(extent, Const):
            reach += abs(c) * (int(extent.value) - 1)
        elif k < len(ordered) - 1:
            return False
    return True


def fills(stmt: Stmt, name: str, shape: dict[int, Expr], loops: tuple[Loop, ...] = ()) -> bool:
    """Whether `stmt` stores every element of the dims `shape` of `name` before it reads any."""
    if isinstance(stmt, Store):
        if stmt.target != name or stmt.op is not None:
            return False
        reads = [a for a in accesses((stmt,)) if a.tensor == name and a.op == "read"]
        return not reads and _covers(stmt, shape, loops)
    if isinstance(stmt, Loop) and stmt.kind != "grid":
        for s in stmt.body:
            if any(a.tensor == name for a in accesses((s,))):
                return fills(s, name, shape, (*loops, stmt))
    return False


def _covers(store: Store, shape: dict[int, Expr], loops: tuple[Loop, ...]) -> bool:
    """Whether the loops around a store take its indices through all of `shape`."""
    left = {x.axis.name: x.axis.extent for x in loops}
    allowed: set[Expr] = set()
    for d, extent in shape.items():
        form = linear(store.indices[d])
        terms = sorted(((c, a) for a, c in form.terms.items()), key=lambda t: t[0])
        reach = 1
        for k, (c, atom) in enumerate(terms):
            if not isinstance(atom, Var) or atom.name not in left or c != reach:
                return False
            size = left.pop(atom.name)
            if k == len(terms) - 1:
                whole = simplify(op("cdiv", extent, const(reach)))
                exact = simplify(op("mul", size, const(reach))) == simplify(extent)
                if size != whole and not exact:
                    return False
                reach = 0
            elif isinstance(size, Const):
                reach *= int(size.value)
            else:
                return False
        if form.constant or (not terms and extent != const(1)):
            return False
        allowed.add(simplify(op("lt", store.indices[d], extent)))
    if any(not isinstance(e, Const) or int(e.value) < 1 for e in left.values()):
        return False
    masks = [c for x in loops for c in x.where]
    return all(simplify(c) in allowed for c in masks)
