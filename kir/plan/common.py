"""What the planners of all targets share: trying steps, and seeing what a loop nest is.

A planner works on a `Draft`: it tries steps, which are kept if the rewrite accepts them, looks at
`draft.kernel`, and in the end gives `draft.steps`. Everything is addressed by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from kir.errors import RewriteError
from kir.ir import (
    Bitcast,
    Buffer,
    Cast,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Step,
    StepArg,
    Store,
    Var,
    walk,
)
from kir.rewrites import apply_step
from kir.rewrites.base import Block, buffers_of, extent_of, free_vars, loops_of, path_to, var_names
from kir.rewrites.legality import accesses, carried
from kir.simplify import linear, simplify

HEAVY = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "sin", "cos", "tan", "asin", "acos",
    "atan", "atan2", "sinh", "cosh", "tanh", "erf", "sigmoid", "philox", "rand",
})  # fmt: skip
"""Ops that cost many instructions: not computed twice unless a planner asks for it."""
MEDIUM = frozenset(("div", "sqrt", "rsqrt", "recip", "floordiv", "mod", "cdiv", "tdiv", "trem"))


def step(rewrite: str, *args: StepArg, **options: StepArg) -> Step:
    return Step(rewrite, args, tuple(options.items()))


@dataclass
class Draft:
    """A schedule in the making: the steps taken so far and the kernel after them."""

    kernel: Kernel
    steps: list[Step] = field(default_factory=list)

    def take(self, rewrite: str, *args: StepArg, **options: StepArg) -> None:
        """Take a step; RewriteError where it is refused."""
        made = step(rewrite, *args, **options)
        self.kernel = apply_step(self.kernel, made)
        self.steps.append(made)

    def attempt(self, rewrite: str, *args: StepArg, **options: StepArg) -> bool:
        """Take a step if the rewrite accepts it."""
        try:
            self.take(rewrite, *args, **options)
        except RewriteError:
            return False
        return True

    def attempt_all(self, steps: list[Step]) -> bool:
        """Take all of the steps, or none."""
        kernel = self.kernel
        try:
            for s in steps:
                kernel = apply_step(kernel, s)
        except RewriteError:
            return False
        self.kernel = kernel
        self.steps.extend(steps)
        return True

    def fork(self) -> Draft:
        """A draft to try something on; `adopt` takes it over."""
        return Draft(self.kernel, list(self.steps))

    def adopt(self, other: Draft) -> None:
        self.kernel, self.steps = other.kernel, other.steps

    def loop(self, name: str) -> Loop:
        """The loop called `name`; KeyError where there is none."""
        for loop in loops_of(self.kernel.body):
            if loop.axis.name == name:
                return loop
        raise KeyError(name)

    def loop_names(self) -> list[str]:
        return [loop.axis.name for loop in loops_of(self.kernel.body)]


# --- before loops ----------------------------------------------------------------------------


def inline_pointwise(draft: Draft, *, recompute_heavy: bool = False) -> None:
    """Inline temporaries that do not reduce, unless that repeats heavy work.

    A definition read once per element of its own domain is always inlined. One that would be
    computed more often is inlined if it is cheap; `recompute_heavy` also repeats exp and the
    like (a GPU would rather do that than go to memory).
    """
    outputs = {p.name for p in draft.kernel.outputs}
    tried: set[str] = set()
    while True:
        names = [
            n.name
            for s in draft.kernel.body
            for n in walk(s)
            if isinstance(n, Define) and n.name not in outputs | tried
        ]
        if not names:
            return
        tried.add(names[0])
        found = _define(draft.kernel, names[0])
        if found is None or any(isinstance(n, Reduce) for n in walk(found)):
            continue
        ops = {n.name for n in walk(found.value) if isinstance(n, Op)}
        cheap = not ops & (HEAVY | MEDIUM)
        if cheap or recompute_heavy or _read_once(draft.kernel, found):
            draft.attempt("inline", names[0])


def _define(kernel: Kernel, name: str) -> Define | None:
    found = [n for s in kernel.body for n in walk(s) if isinstance(n, Define) and n.name == name]
    return found[0] if len(found) == 1 else None


def _read_once(kernel: Kernel, define: Define) -> bool:
    """Whether each element is read at most once in all: a single read, whose indices are all the
    axes of the definition (and reductions) around it."""
    readers = [
        (n, r)
        for s in kernel.body
        for n in walk(s)
        if isinstance(n, Define | Store)
        for r in walk(n)
        if isinstance(r, Read) and r.tensor == define.name
    ]
    if len(readers) != 1:
        return False
    user, read = readers[0]
    around = {a.name for a in user.axes} if isinstance(user, Define) else set()
    for r in walk(user):
        if isinstance(r, Reduce) and any(n is read for n in walk(r)):
            around |= {a.name for a in r.axes}
    return around <= {e.name for e in read.indices if isinstance(e, Var)}


# --- after loops -----------------------------------------------------------------------------


def chain(loop: Loop) -> tuple[Loop, ...]:
    """The perfect nest that starts at `loop`, outermost first."""
    found = [loop]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], Loop):
        found.append(found[-1].body[0])
    return tuple(found)


def is_parallel(loop: Loop) -> bool:
    """Whether the iterations are independent, with no reduction over them either."""
    return carried(loop, reductions=False) is None


def parallel_prefix(loop: Loop) -> tuple[Loop, ...]:
    """The leading loops of the nest whose iterations are independent."""
    found: list[Loop] = []
    for x in chain(loop):
        if not is_parallel(x):
            break
        found.append(x)
    return tuple(found)


def nests(kernel: Kernel) -> list[Loop]:
    """The loops to be made parallel one by one: top-level ones, and in the place of a loop that
    carries a dependence (time in a recurrence) those directly inside it."""

    def go(body: Block) -> Iterator[Loop]:
        for s in body:
            if isinstance(s, If):
                yield from go(s.body)
            elif isinstance(s, Loop):
                inner = [x for x in s.body if isinstance(x, Loop)]
                if carried(s) is not None and inner:
                    yield from go(s.body)
                else:
                    yield s

    return list(go(kernel.body))


def fuse_nests(
    draft: Draft, *, contractions: bool = False, inner: bool = True, totals: bool = True
) -> None:
    """Fuse consecutive nests at the leading axes they share, so that rows stay together.

    A contraction (see `contraction`) is fused only with nests that share all its parallel axes,
    unless `contractions` asks for more. With `inner`, loops inside fused bodies are fused too.
    Without `totals`, a nest over independent iterations stays apart from one that reduces over
    them, so that it may run in parallel.
    """
    while _fuse_one(draft, draft.kernel.body, contractions, inner, totals):
        pass


def _fuse_one(
    draft: Draft, body: Block, contractions: bool, inner: bool, totals: bool = True
) -> bool:
    loops = [s for s in body if isinstance(s, Loop) and s.kind != "grid"]
    for a, b in pairwise(loops):
        if simplify(a.axis.extent) != simplify(b.axis.extent) or a.kind != b.kind:
            continue
        if not contractions and not _whole(a, b):
            continue
        if not totals and is_parallel(a) != is_parallel(b):
            continue
        if draft.attempt("fuse", a.axis.name, b.axis.name):
            return True
    for s in loops:
        deeper = inner or carried(s) is not None or _only_parallel(s)
        if deeper and _fuse_one(draft, s.body, contractions, inner):
            return True
    return False


def _only_parallel(loop: Loop) -> bool:
    return is_parallel(loop) and any(isinstance(s, Loop) and is_parallel(s) for s in loop.body)


def _whole(a: Loop, b: Loop) -> bool:
    """Whether fusing two nests leaves the parallel axes of a contraction in either whole."""
    one, two = parallel_prefix(a), parallel_prefix(b)
    shared = 0
    for x, y in zip(one, two, strict=False):
        if simplify(x.axis.extent) != simplify(y.axis.extent):
            break
        shared += 1
    for nest, depth in ((a, len(one)), (b, len(two))):
        if any(isinstance(n, Store) and _product(n) for n in walk(nest)):
            found = contraction_in(nest)
            if found is not None and shared < depth:
                return False
    return True


def contract_temporaries(draft: Draft, row_space: str | None = None) -> None:
    """Move temporaries into the loops around their uses: scalars to reg, and rows to `row_space`
    (None leaves those in global memory, where they are)."""
    for buffer in list(buffers_of(draft.kernel.body)):
        if buffer.space != "global":
            continue
        trial = draft.fork()
        if not trial.attempt("contract", buffer.name, "reg"):
            continue
        (moved,) = (b for b in buffers_of(trial.kernel.body) if b.name == buffer.name)
        if not moved.shape:
            draft.adopt(trial)
        elif row_space is not None and len(moved.shape) < len(buffer.shape):
            draft.attempt("contract", buffer.name, row_space)


# --- what a nest is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Contraction:
    """A sum of products: `acc += left * right` over `reduction`, for each of the parallel axes.

    `rows` are the parallel axes that only `left` has, `columns` those that only `right` has,
    `batch` the others. `store` is the store of the result; where its last index is an axis of
    one operand, that operand is `right`, so `columns[-1]` is contiguous in the output.
    """

    acc: str
    left: Expr
    right: Expr
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    reduction: tuple[str, ...]
    update: Store

    @property
    def parallel(self) -> tuple[str, ...]:
        return self.batch + self.rows + self.columns


def _product(store: Store) -> tuple[Expr, Expr] | None:
    """The factors of `acc += a * b`, casts around the product looked through."""
    value = store.value
    while isinstance(value, Cast | Bitcast):
        value = value.value
    if store.op != "add":
        return None
    match value:
        case Op("mul", (a, b)):
            return a, b
    return None


def contraction_in(nest: Loop) -> Contraction | None:
    """The contraction that a nest fresh from `loops()` computes: its parallel loops around a
    scalar accumulator, its reduction loops, and two factors that read different axes."""
    parallel = parallel_prefix(nest)
    if not parallel:
        return None
    body = parallel[-1].body
    scalars = {s.name for s in body if isinstance(s, Buffer) and not s.shape}
    for s in body:
        if not isinstance(s, Loop):
            continue
        loops = chain(s)
        inner = loops[-1].body
        if len(inner) != 1 or not isinstance(inner[0], Store) or inner[0].target not in scalars:
            continue
        factors = _product(inner[0])
        if factors is None:
            continue
        axes = tuple(x.axis.name for x in parallel)
        return _roles(axes, tuple(x.axis.name for x in loops), inner[0], factors, body)
    return None


def _roles(
    parallel: tuple[str, ...],
    reduction: tuple[str, ...],
    update: Store,
    factors: tuple[Expr, Expr],
    body: Block,
) -> Contraction | None:
    left, right = factors
    one, two = _read_axes(left), _read_axes(right)
    if not one & set(reduction) or not two & set(reduction):
        return None
    last = _last_axis(body)
    if last is not None and last in one - two:
        left, right, one, two = right, left, two, one
    rows = tuple(a for a in parallel if a in one - two)
    columns = tuple(a for a in parallel if a in two - one)
    if not rows or not columns:
        return None
    batch = tuple(a for a in parallel if a not in rows + columns)
    return Contraction(update.target, left, right, batch, rows, columns, reduction, update)


def _read_axes(e: Expr) -> set[str]:
    return {v for n in walk(e) if isinstance(n, Read) for i in n.indices for v in free_vars(i)}


def _last_axis(body: Block) -> str | None:
    """The axis that is contiguous in what the block stores, past its accumulators."""
    for s in reversed(body):
        if isinstance(s, Store) and s.indices and isinstance(s.indices[-1], Var):
            return s.indices[-1].name
    return None


def contractions(kernel: Kernel) -> list[tuple[Loop, Contraction]]:
    """The nests (see `nests`) that are contractions."""
    found = ((n, contraction_in(n)) for n in nests(kernel))
    return [(n, c) for n, c in found if c is not None]


def contiguous_score(loop: Loop) -> int:
    """How many accesses inside walk memory element by element with this loop's index, less
    those that stride with it."""
    name, score = loop.axis.name, 0
    for a in accesses((loop,)):
        for d, index in enumerate(a.indices):
            if name in var_names(index):
                unit = linear(index).terms.get(Var(name)) == 1
                score += 1 if unit and d == len(a.indices) - 1 else -1
    return score


def innermost_loops(nest: Loop) -> list[Loop]:
    """The loops below (or the nest itself) that hold no further loop."""
    return [x for x in loops_of((nest,)) if not any(isinstance(n, Loop) for n in _below(x))]


def _below(loop: Loop) -> Iterator[Node]:
    for s in loop.body:
        yield from walk(s)


def accumulators(draft: Draft, loop: str) -> list[str]:
    """The scalar buffers, declared outside of `loop`, that its body accumulates into."""
    found = draft.loop(loop)
    scalars = {b.name for b in buffers_of(draft.kernel.body) if not b.shape}
    uses = [a for a in accesses((found,)) if a.tensor in scalars]
    updated = dict.fromkeys(a.tensor for a in uses if a.op not in ("read", "write"))
    return [t for t in updated if all(a.op not in ("read", "write") for a in uses if a.tensor == t)]


# --- pieces of schedules ---------------------------------------------------------------------


@dataclass(frozen=True)
class Lanes:
    """What `vectorise` made: the loop over blocks, that over lanes, and the combining loops."""

    outer: str
    lanes: str
    combines: tuple[str, ...]


def vectorise(draft: Draft, loop: str, width: int) -> Lanes | None:
    """Split an innermost loop by `width` and make the inner loop a `tile` of lanes; scalars it
    accumulates get a partial per lane (`rfactor`), combined after it. None where refused."""
    trial = draft.fork()
    outer = f"{loop}_o"
    taken = set(trial.loop_names())
    if not trial.attempt("split", loop, width):
        return None
    (outer,) = set(trial.loop_names()) - taken
    combines: list[str] = []
    for acc in accumulators(trial, loop):
        before = set(trial.loop_names())
        if not trial.attempt("rfactor", acc, loop):
            return None
        combines.extend(set(trial.loop_names()) - before)
    if not trial.attempt("bind", loop, "tile"):
        return None
    for name in combines:
        if not trial.attempt("bind", name, "tile"):
            return None
    draft.adopt(trial)
    return Lanes(outer, loop, tuple(combines))


@dataclass(frozen=True)
class Tiled:
    """The loops of a tiled contraction, by name.

    `grid`: the independent loops around (batch, leading rows and columns, then the blocks of
    rows and of columns); `steps`: the loops over the reduction, outside the block; `rows`,
    `columns`, `depth`: the block itself; `epilogue`: the (row, column) loops of each nest that
    follows the accumulation.
    """

    acc: str
    grid: tuple[str, ...]
    steps: tuple[str, ...]
    rows: str
    columns: str
    depth: str
    epilogue: tuple[tuple[str, str], ...]


def depth_axis(draft: Draft, found: Contraction) -> str:
    """The reduction axis worth tiling: a symbolic one before constants, the longest of these."""
    extents = [(a, constant_extent(draft, a)) for a in found.reduction]
    return max(extents, key=lambda t: math.inf if t[1] is None else t[1])[0]


def tile_contraction(
    draft: Draft, found: Contraction, rows: int, columns: int, depth: int | None
) -> Tiled | None:
    """The canonical schedule of a contraction: blocks of `rows` x `columns`, an accumulator for
    the block in reg, the reduction outside the block in steps of `depth` (None: of one).

    The last row and column axis are tiled, and the `depth_axis`. None where refused.
    """
    trial = draft.fork()
    i, j, k = found.rows[-1], found.columns[-1], depth_axis(draft, found)
    if not trial.attempt("split", i, rows):
        return None
    i_o = _around(trial, i)
    if not trial.attempt("split", j, columns):
        return None
    j_o = _around(trial, j)
    others = tuple(a for a in found.parallel if a not in (i, j))
    grid = (*others, i_o, j_o)
    before = set(trial.loop_names())
    first = found.reduction[0]
    ok = (
        trial.attempt("reorder", (*grid, i, j))
        and trial.attempt("fission", j, after=first)
        and trial.attempt("fission", i, after=j)
    )
    if not ok:
        return None
    after = [n for n in trial.loop_names() if n not in before]
    steps = tuple(a for a in found.reduction if a != k)
    inside: tuple[str, ...] = (i, j)
    if depth is None:
        steps = (*steps, k)
    else:
        if not trial.attempt("split", k, depth):
            return None
        steps, inside = (*steps, _around(trial, k)), (i, j, k)
    if not trial.attempt("reorder", (*steps, *inside)):
        return None
    epilogue = tuple((a, b) for a, b in zip(after[::2], after[1::2], strict=False))
    draft.adopt(trial)
    return Tiled(found.acc, grid, steps, i, j, k, epilogue)


def _around(draft: Draft, name: str) -> str:
    """The name of the loop directly around another one."""
    path = path_to(draft.kernel.body, draft.loop(name)) or ()
    (*_, outer) = (s for s in path if isinstance(s, Loop))
    return outer.axis.name


def constant_extent(draft: Draft, name: str) -> int | None:
    return extent_of(draft.loop(name))
