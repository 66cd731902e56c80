"""Where temporaries live: `contract`, `set_space`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NoReturn

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
    const,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    find_buffer,
    loops_of,
    path_to,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.rewrites.window import (
    NoWindow,
    Use,
    Window,
    after,
    block_of,
    determines,
    disjoint,
    fills_windows,
    in_bounds,
    loops_in,
    mentions,
    redirect,
    uses_of,
    window,
)

if TYPE_CHECKING:
    from kir.analysis import Access

__all__ = [
    "Contract",
    "SetSpace",
    "check_grid",
    "check_inside",
    "check_space",
    "determines",
    "fills",
]


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

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for b in buffers_of(kernel.body):
            for space in SPACES:
                if space != b.space:
                    yield Move(cls.name, (("buffer", b.name), ("space", space)))


def check_grid(kernel: Kernel, buffer: Buffer, space: str, body: Block | None = None) -> None:
    """Refuse a `local` or `reg` buffer that a grid inside its block (`body`, else the whole
    kernel's) would share."""
    if space == "global":
        return
    for loop in loops_of(kernel.body if body is None else body):
        if loop.kind == "grid" and mentions(loop, buffer.name):
            refuse(
                kernel,
                f"`{buffer.name}` is used inside the grid `{loop.axis.name}`, so it is global",
                node=buffer,
                hint="`contract` moves it inside",
            )


def check_inside(kernel: Kernel, loop: Loop, body: Block, buffer: Buffer, space: str) -> None:
    """Refuse a buffer that would live in the body of `loop`, where that is no place for it."""
    around = (*(path_to(kernel.body, loop) or ()), loop)
    grids = [x for x in loops_in(around) if x.kind == "grid"]
    if space == "global" and grids:
        refuse(
            kernel,
            f"`{buffer.name}` would be in global memory inside the grid `{grids[-1].axis.name}`",
            node=grids[-1],
            hint="inside a grid, buffers are local or reg",
        )
    check_grid(kernel, buffer, space, body)


@dataclass(frozen=True)
class _Place:
    """Where a buffer may move: into the innermost loop of `path`, as these windows of its dims.

    Dims in `whole` are kept as they are; `init` is what it then starts from.
    """

    path: tuple[Loop | If, ...]
    block: Block
    windows: tuple[Window, ...]
    whole: frozenset[int]
    init: Expr | None

    @property
    def dropped(self) -> frozenset[int]:
        return frozenset(
            d for d, w in enumerate(self.windows) if w.size == const(1) and d not in self.whole
        )

    @property
    def smaller(self) -> bool:
        return len(self.whole) < len(self.windows)

    @property
    def kept(self) -> dict[int, Window]:
        return {d: w for d, w in enumerate(self.windows) if d not in self.dropped}


@dataclass(frozen=True)
class Contract(Rewrite):
    """`contract(buffer, space)`: a temporary moves into the loops around all its uses, and keeps
    of each dim only the window that one iteration of them goes through.

    Before::

        buffer m: f32[M] in global
        buffer e: f32[M, N] in global
        for i: M {
          m[i] = x[i, 0]
          for j_o: cdiv(N, 64) {
            for j: 64 where j_o*64 + j < N { e[i, j_o*64 + j] = x[i, j_o*64 + j] - m[i] }
            for k: 64 where j_o*64 + k < N { y[i, j_o*64 + k] = exp(e[i, j_o*64 + k]) }
          }
        }

    After `contract((m, e), reg)`::

        for i: M {
          buffer m: f32[] in reg
          m = x[i, 0]
          for j_o: cdiv(N, 64) {
            buffer e: f32[64] in reg
            for j: 64 where j_o*64 + j < N { e[j] = x[i, j_o*64 + j] - m }
            for k: 64 where j_o*64 + k < N { y[i, j_o*64 + k] = exp(e[k]) }
          }
        }

    A dim that only the loops around the uses index is lost. Reads with a fill find it in the
    buffer, where the window passes the bounds. Refused where an iteration may use what another
    one stored.
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
        block = block_of(kernel.body, buffer)
        require_loops(kernel, block)
        rest = after(block, buffer)
        if not any(mentions(s, self.buffer) for s in rest):
            return replace_stmt(kernel, buffer, ())
        path = users_path(rest, self.buffer)
        shown: Access | None = None
        for depth in range(len(path), -1, -1):
            if depth and not isinstance(path[depth - 1], Loop):
                continue
            place = self._place(kernel, buffer, rest, path[:depth])
            guards = itertools.takewhile(lambda s: isinstance(s, If), path[depth:])
            other = self._foreign(kernel, buffer, place, (*place.path, *guards))
            if other is not None:
                shown = other
                continue
            if not depth and not place.smaller:
                break
            return self._moved(kernel, buffer, space, place)
        return self._refuse(kernel, buffer, shown)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for b in buffers_of(kernel.body):
            for space in ("local", "reg"):
                yield Move(cls.name, (("buffer", b.name), ("space", space)))

    def _refuse(self, kernel: Kernel, buffer: Buffer, shown: Access | None) -> NoReturn:
        if shown is None:
            refuse(
                kernel,
                f"`{self.buffer}` cannot move inwards: no loop holds all its uses",
                node=buffer,
                hint="fuse the loops that write and read it; `set_space` only changes the space",
            )
        from kir.analysis import describe

        refuse(
            kernel,
            f"`{self.buffer}` cannot move inwards: {describe(shown)} may use what another "
            "iteration stored",
            node=shown.node,
        )

    def _place(
        self, kernel: Kernel, buffer: Buffer, rest: Block, path: tuple[Loop | If, ...]
    ) -> _Place:
        block = path[-1].body if path else rest
        uses = uses_of(buffer.name, block)
        windows: list[Window] = []
        whole: set[int] = set()
        for d, extent in enumerate(buffer.shape):
            found = window(uses, d)
            if isinstance(found, NoWindow) or not _smaller(found, extent):
                whole.add(d)
                found = Window(const(0), extent)
            windows.append(found)
        outside = (*(path_to(kernel.body, buffer) or ()), *path)
        fills, beyond = self._beyond(kernel, buffer, uses, outside, whole)
        init = buffer.init
        if len(fills) == 1 and init in (None, *fills) and isinstance(fills[0], Const):
            init = fills[0]
        elif fills:  # no one constant that the windows could hold out of bounds
            whole |= beyond
            windows = [
                Window(const(0), e) if d in beyond else w
                for d, (w, e) in enumerate(zip(windows, buffer.shape, strict=True))
            ]
        return _Place(path, block, tuple(windows), frozenset(whole), init)

    def _beyond(
        self,
        kernel: Kernel,
        buffer: Buffer,
        uses: Sequence[Use],
        outside: Sequence[Stmt],
        whole: set[int],
    ) -> tuple[list[Expr], set[int]]:
        """The fills of reads that may be out of bounds in dims of which only a window is kept,
        and those dims."""
        found: dict[Expr, None] = {}
        dims: set[int] = set()
        for use in uses:
            node = use.access.node
            if not isinstance(node, Read) or node.fill is None:
                continue
            for d, (index, extent) in enumerate(zip(node.indices, buffer.shape, strict=True)):
                if d in whole or in_bounds(kernel, (*outside, *use.around), index, extent):
                    continue
                found[node.fill] = None
                dims.add(d)
        return list(found), dims

    def _foreign(
        self, kernel: Kernel, buffer: Buffer, place: _Place, path: tuple[Loop | If, ...]
    ) -> Access | None:
        """A read in an iteration of the loops of the path that may use what another one stored."""
        if disjoint(place.windows, loops_in(place.path)):
            return None
        for stmt in place.block:
            if mentions(stmt, buffer.name):
                if fills_windows(stmt, buffer.name, place.kept, buffer.shape):
                    return None
                break
        from kir.rewrites.lifetime import unfilled  # integer sets: seldom needed

        return unfilled(kernel, buffer, path)

    def _moved(self, kernel: Kernel, buffer: Buffer, space: Space, place: _Place) -> Kernel:
        kept = place.kept
        shape = tuple(w.size for w in kept.values())
        made = replace(buffer, shape=shape, space=space, init=place.init)
        inner = next((s for s in reversed(place.path) if isinstance(s, Loop)), None)
        if inner is None:
            check_grid(kernel, buffer, space, place.block)
        else:
            check_inside(kernel, inner, place.block, buffer, space)
        padded = bool(place.whole & set(kept))
        path = place.path

        def into(block: Block) -> Block:
            at = next(k for k, s in enumerate(block) if mentions(s, buffer.name))
            done = tuple(shifted(s, buffer.name, kept, padded=padded) for s in block[at:])
            return (*block[:at], made, *done)

        def descend(block: Block, depth: int) -> Block:
            if depth == len(path):
                return into(block)
            target = path[depth]
            return tuple(
                replace(target, body=descend(target.body, depth + 1)) if s is target else s
                for s in block
            )

        return edit_block(kernel, buffer, lambda block, k: block[:k] + descend(block[k + 1 :], 0))


def fills(stmt: Stmt, name: str, shape: dict[int, Expr]) -> bool:
    """Whether `stmt` stores every element of the dims `shape` of `name` before it reads any."""
    extents = [shape.get(d, const(0)) for d in range(max(shape, default=-1) + 1)]
    whole = {d: Window(const(0), e) for d, e in shape.items()}
    return fills_windows(stmt, name, whole, extents)


def _smaller(found: Window, extent: Expr) -> bool:
    """Whether a window is a constant part of a dim, or one index of a dim of 1, which need not be
    kept: all of the dim is otherwise."""
    if not isinstance(found.size, Const):
        return False
    return (
        int(found.size.value) == 1
        or not isinstance(extent, Const)
        or int(found.size.value) < int(extent.value)
    )


def users_path(block: Block, name: str) -> tuple[Loop | If, ...]:
    """The loops and guards around all uses of a buffer, from its block inwards."""
    path: list[Loop | If] = []
    while True:
        users = [s for s in block if mentions(s, name)]
        if len(users) != 1 or not isinstance(users[0], Loop | If):
            return tuple(path)
        top = users[0]
        head = (top.axis.extent, *top.where) if isinstance(top, Loop) else (top.condition,)
        if any(isinstance(n, Read) and n.tensor == name for e in head for n in walk(e)):
            return tuple(path)
        path.append(top)
        block = top.body


def shifted(stmt: Stmt, tensor: str, windows: dict[int, Window], *, padded: bool) -> Stmt:
    """The statement with each access of `tensor` relative to the windows (by dim; others are
    left out). Reads keep their fills where `padded`."""

    def at(indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return tuple(
            indices[d] if w.base == const(0) else op("sub", indices[d], w.base)
            for d, w in windows.items()
        )

    def visit(n: Read | Store) -> Node:
        if isinstance(n, Read):
            return replace(n, indices=at(n.indices), fill=n.fill if padded and windows else None)
        return replace(n, indices=at(n.indices))

    return redirect(stmt, tensor, visit)
