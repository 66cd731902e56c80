"""Macro moves: several rewrites that only pay together, made for the kernel as it stands.

Each is a recipe over any nest of its kind, with a few numbers open; none knows a kernel by name,
and none asks the planner. What a recipe cannot apply on the way it leaves out or gives up at: the
rewrites judge what is legal.

- `block`: a reduction under parallel loops: two or three of these in register blocks of lanes,
  the reductions outside of the block, what it reads staged, products contracted.
- `rows`: all nests over one outer loop fused, their temporaries contracted, inner loops as lanes;
  outputs stored past the caches, or not.
- `lanes`: inner loops as lanes where they are. `parallel`: outermost loops over the cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from kir.errors import RewriteError
from kir.ir import Buffer, Const, Kernel, Loop, Read, Step, StepArg, Stmt, Store, vars_of, walk
from kir.rewrites import apply_step
from kir.rewrites.base import buffers_of, loops_of

Steps = tuple[Step, ...]
BLOCKS = ((6, 16), (4, 16), (4, 24), (8, 8), (2, 32), (4, 8), (2, 4, 8), (4, 2, 8), (2, 3, 16))
"""Lines and columns of a block, columns the last loop's; registers for it and what it reads."""
WIDTHS = (32, 16, 8, 64)


class Cursor:
    """A kernel being rewritten, and the steps so far."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.steps: list[Step] = []

    def do(self, rewrite: str, *args: StepArg, **options: StepArg) -> None:
        """RewriteError where it is refused."""
        step = Step(rewrite, args, tuple(options.items()))
        self.kernel = apply_step(self.kernel, step)
        self.steps.append(step)

    def attempt(self, rewrite: str, *args: StepArg, **options: StepArg) -> bool:
        try:
            self.do(rewrite, *args, **options)
        except RewriteError:
            return False
        return True

    def loops(self) -> dict[str, Loop]:
        return {x.axis.name: x for x in loops_of(self.kernel.body)}

    def split(self, loop: str, factor: int) -> tuple[str | None, str]:
        """The names of the outer loop and of the inner one, of `factor` iterations; no outer one
        where the loop is no longer than that."""
        extent = _extent(self.loops()[loop])
        if extent is not None and extent <= factor:
            return None, loop
        before = set(self.loops())
        self.do("split", loop, factor)
        new = [name for name in self.loops() if name not in before]
        return new[0], loop


def macros(kernel: Kernel) -> Iterator[tuple[str, Callable[[], Steps]]]:
    """What may be done here, named, as functions that give the steps (RewriteError where it cannot
    be). Cheap to list."""
    for nest, block in itertools.product(reductions(kernel), BLOCKS):
        if len(block) > len(nest[1]):
            continue
        for staged, turned in itertools.product((None, 0, 1), (False, True)):
            name = f"block {nest[0]} {block} staged={staged} turned={turned}"
            yield name, bound_to(_block, kernel, nest, block, staged, turned)
    if any(isinstance(s, Loop) for s in kernel.body):
        for width in WIDTHS:
            yield f"rows {width}", bound_to(_rows, kernel, width)
            yield f"rows {width} streamed", bound_to(_streamed_rows, kernel, width)
            yield f"lanes {width}", bound_to(_lanes, kernel, width)
        yield "parallel", bound_to(_parallel, kernel)


def bound_to(recipe: Callable[..., Steps], *args: object) -> Callable[[], Steps]:
    return lambda: recipe(*args)


# --- blocks ------------------------------------------------------------------------------------

Nest = tuple[str, tuple[str, ...], tuple[str, ...]]
"""An accumulator, the perfectly nested loops around its declaration, the loops that reduce."""


def reductions(kernel: Kernel) -> Iterator[Nest]:
    """Plain nests of `for`s around one accumulator and the loops that update it."""
    for top in kernel.body:
        around: list[str] = []
        level: tuple[Stmt, ...] = (top,)
        while len(level) == 1 and isinstance(level[0], Loop) and level[0].kind == "for":
            around.append(level[0].axis.name)
            level = level[0].body
        accs = [s for s in level if isinstance(s, Buffer)]
        inner = [s for s in level if isinstance(s, Loop)]
        if not around or len(accs) != 1 or len(inner) != 1 or accs[0].shape:
            continue
        reducing: list[str] = []
        level = (inner[0],)
        while len(level) == 1 and isinstance(level[0], Loop):
            reducing.append(level[0].axis.name)
            level = level[0].body
        if all(isinstance(s, Store) and s.target == accs[0].name for s in level):
            yield accs[0].name, tuple(around), tuple(reducing)


def _block(
    kernel: Kernel, nest: Nest, block: tuple[int, ...], staged: int | None, turned: bool
) -> Steps:
    """`staged`: in which of the loops around the block inputs are copied. `turned`: the loops
    around the block in the other order."""
    cursor = Cursor(kernel)
    _, around, reducing = nest
    blocked = (*_lines(kernel, around, reducing, len(block) - 1), around[-1])
    outer: dict[str, str | None] = {}
    for loop, factor in zip(blocked, block, strict=True):
        outer[loop], _ = cursor.split(loop, factor)
    inner = list(blocked)
    begun = [o for o in outer.values() if o is not None]
    place = (*(n for n in around if n not in outer), *(reversed(begun) if turned else begun))
    order = (*place, *inner)
    if list(order) != _names(cursor.kernel, order):
        cursor.do("reorder", order)
    after = reducing[0]
    for name in reversed(inner):
        cursor.do("fission", name, after=after)
        after = name
    cursor.do("reorder", (*reducing, *inner))
    wide = [n for n in place if (_extent(cursor.loops()[n]) or 2) > 1]
    if staged is not None:
        if staged >= len(wide):
            raise RewriteError("there is no loop to copy in", kernel=cursor.kernel)
        _stage(cursor, wide[staged])
    for name in _inside(cursor.kernel, (*reducing, *place)):
        cursor.attempt("bind", name, "tile")
    for name in place[: 2 if staged is None else place.index(wide[staged]) + 1]:
        cursor.attempt("bind", name, "grid")
    cursor.attempt("contract_fma")
    return tuple(cursor.steps)


def _lines(
    kernel: Kernel, around: tuple[str, ...], reducing: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """Which loops beside the last give the lines of a block: those that the most reads do without,
    longer ones first; in the order of the nest."""
    reads = [n for loop in loops_of(kernel.body) if loop.axis.name == reducing[-1]
             for n in walk(loop) if isinstance(n, Read)]  # fmt: skip
    extents = {x.axis.name: _extent(x) or 1 for x in loops_of(kernel.body)}

    def shared(name: str) -> tuple[int, int]:
        return sum(name not in vars_of(r) for r in reads), extents[name]

    rest = sorted((n for n in around[:-1] if extents[n] > 1), key=shared, reverse=True)[:count]
    if len(rest) < count:
        raise RewriteError("too few loops for such a block", kernel=kernel)
    return tuple(n for n in around if n in rest)


def _stage(cursor: Cursor, place: str) -> None:
    """A copy on the chip of each input that changes with a loop, or is read out of bounds; its
    last index as lanes."""
    named = {p.name for p in cursor.kernel.inputs}
    reads = [n for n in walk(cursor.loops()[place]) if isinstance(n, Read) and n.tensor in named]
    chosen = {n.tensor for n in reads if n.fill is not None or place in vars_of(n)}
    for tensor in sorted(chosen):
        before = set(cursor.loops())
        if cursor.attempt("stage", tensor, place, space="local"):
            copies = [name for name in cursor.loops() if name not in before]
            if copies:
                cursor.attempt("bind", copies[-1], "tile")


def _names(kernel: Kernel, wanted: tuple[str, ...]) -> list[str]:
    return [x.axis.name for x in loops_of(kernel.body) if x.axis.name in wanted]


def _inside(kernel: Kernel, around: tuple[str, ...]) -> list[str]:
    """`for` loops whose extent is small and that are none of `around`: the lanes of a block."""
    return [
        x.axis.name
        for x in loops_of(kernel.body)
        if x.axis.name not in around and x.kind == "for" and (_extent(x) or 1 << 30) <= 64
    ]


# --- rows --------------------------------------------------------------------------------------


def _rows(kernel: Kernel, width: int) -> Steps:
    cursor = Cursor(kernel)
    fuse_alike(cursor, lambda: list(cursor.kernel.body))
    for outer in [s.axis.name for s in cursor.kernel.body if isinstance(s, Loop)]:
        fuse_alike(cursor, lambda outer=outer: list(cursor.loops()[outer].body))  # type: ignore[misc]
    for buffer in [b for b in buffers_of(cursor.kernel.body) if b.space == "global"]:
        if not cursor.attempt("contract", buffer.name, "reg"):
            cursor.attempt("contract", buffer.name, "local")
    return (*cursor.steps, *_finish(cursor, width))


def _streamed_rows(kernel: Kernel, width: int) -> Steps:
    """With outputs that go past the caches."""
    cursor = Cursor(kernel)
    for step in _rows(kernel, width):
        cursor.do(step.rewrite, *step.args, **dict(step.options))
    for s in cursor.kernel.body:
        if isinstance(s, Loop) and s.kind == "grid":
            cursor.attempt("hint", s.axis.name, "stream", 1)
    return tuple(cursor.steps)


def fuse_alike(cursor: Cursor, block: Callable[[], list[Stmt]]) -> None:
    """Fuse each loop of a block with those that follow it and are alike, where that is legal."""
    loops = [s for s in block() if isinstance(s, Loop)]
    first = 0
    while first < len(loops):
        fused = False
        for later in loops[first + 1 :]:
            if _extent(later) == _extent(loops[first]) and cursor.attempt(
                "fuse", loops[first].axis.name, later.axis.name
            ):
                fused = True
                break
        loops = [s for s in block() if isinstance(s, Loop)] if fused else loops
        first += not fused


def _lanes(kernel: Kernel, width: int) -> Steps:
    return _finish(Cursor(kernel), width)


def _parallel(kernel: Kernel) -> Steps:
    cursor = Cursor(kernel)
    _over_cores(cursor)
    if not cursor.steps:
        raise RewriteError("no outermost loop can be parallel", kernel=kernel)
    return tuple(cursor.steps)


def _finish(cursor: Cursor, width: int) -> Steps:
    """Innermost loops as lanes, outermost ones over the cores; the steps that it took."""
    begun = len(cursor.steps)
    for name, loop in list(cursor.loops().items()):
        if loop.kind == "for" and not any(isinstance(s, Loop) for s in loop.body):
            _as_lanes(cursor, name, width)
    _over_cores(cursor)
    if len(cursor.steps) == begun:
        raise RewriteError("nothing here can be lanes or parallel", kernel=cursor.kernel)
    return tuple(cursor.steps[begun:])


def _as_lanes(cursor: Cursor, name: str, width: int) -> None:
    """An innermost loop in vectors: its accumulators one for each lane, added up behind it."""
    loop = cursor.loops()[name]
    extent = _extent(loop)
    if extent is None or extent < 4:
        return
    kernel, steps = cursor.kernel, len(cursor.steps)
    accs = [s.target for s in loop.body if isinstance(s, Store) and s.op is not None
            and not any(name in vars_of(i) for i in s.indices)]  # fmt: skip
    try:
        cursor.split(name, width)
        for acc in dict.fromkeys(accs):
            before = set(cursor.loops())
            cursor.do("rfactor", acc, name)
            for new in [x for x in cursor.loops() if x not in before]:
                cursor.attempt("bind", new, "tile")
        cursor.do("bind", name, "tile")
    except RewriteError:
        cursor.kernel = kernel
        del cursor.steps[steps:]


def _over_cores(cursor: Cursor) -> None:
    for s in list(cursor.kernel.body):
        if isinstance(s, Loop) and s.kind == "for" and (_extent(s) or 2) > 1:
            cursor.attempt("bind", s.axis.name, "grid")


def _extent(loop: Loop) -> int | None:
    return int(loop.axis.extent.value) if isinstance(loop.axis.extent, Const) else None
