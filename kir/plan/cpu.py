"""The default schedule for CPUs: ordinary rewrite steps, for any kernel.

- Elementwise nests: a grid over the outer axes and chunks of the contiguous one, which is cut into
  tiles of lanes.
- Rows: a grid over the parallel axes; temporaries of a row stay in cache (`local`), and each
  innermost loop is cut into tiles of lanes, with a partial sum per lane where it reduces.
- Contractions: register blocks of 6 rows by two vectors, over operands staged into cache and
  padded, so that the innermost loop has no mask.
- Windows (convolution, pooling): lanes along the contiguous parallel axis, which walk the inner
  loops together.

What a rewrite refuses is left as plain loops, which always work.
"""

from __future__ import annotations

from kir.ir import Define, If, Kernel, Loop, Read, Reduce, Step, Store, Var, walk
from kir.plan.common import (
    Contraction,
    Draft,
    chain,
    constant_extent,
    contiguous_score,
    contract_temporaries,
    contraction_in,
    fuse_nests,
    inline_pointwise,
    innermost_loops,
    is_parallel,
    nests,
    parallel_prefix,
    tile_contraction,
    vectorise,
)

CHUNK = 1 << 14
"""Elements of the contiguous axis that one iteration of an elementwise grid takes."""
REGISTERS = 4
"""Vectors of f32 that a tile of lanes fills: independent chains to hide latencies."""
BLOCK_ROWS = {128: 4, 256: 6, 512: 14}
"""Rows of a register block of two vectors, by the width of vectors in bits."""
PANEL = 4
"""Register blocks that share a staged panel of the right operand."""


def plan(kernel: Kernel, vector_bits: int = 256) -> tuple[Step, ...]:
    """The steps from `kernel` (a spec, or half scheduled) to a schedule for vectors of this width.

    Every kernel gets one: at worst, its canonical loops.
    """
    draft = Draft(kernel)
    if any(isinstance(n, Define | Reduce) for n in walk(kernel)):
        inline_pointwise(draft)
        draft.take("loops")
    fuse_nests(draft)
    contract_temporaries(draft, row_space="local")
    lanes = vector_bits // 32
    for name in [loop.axis.name for loop in nests(draft.kernel)]:
        _schedule(draft, name, lanes)
    draft.attempt("contract_fma")
    return tuple(draft.steps)


def _schedule(draft: Draft, name: str, lanes: int) -> None:
    nest = draft.loop(name)
    found = contraction_in(nest)
    if found is not None and _contraction(draft, found, lanes):
        return
    prefix = [x.axis.name for x in parallel_prefix(nest)]
    if not prefix:
        _inner_loops(draft, nest, lanes)
    elif not any(isinstance(s, Loop | If) for s in draft.loop(prefix[-1]).body):
        _elementwise(draft, prefix, lanes * REGISTERS)
    elif _lanes_outside(draft, prefix[-1]):
        _windows(draft, prefix, lanes * 2)
    else:
        _inner_loops(draft, draft.loop(prefix[-1]), lanes)
        _grid(draft, prefix)
        _fetch_ahead(draft, prefix[-1])


def _grid(draft: Draft, names: list[str]) -> None:
    """Make loops a grid, as many as allow it, and let large outputs bypass the cache."""
    bound = [name for name in names if draft.attempt("bind", name, "grid")]
    if bound and _writes_once(draft, bound[0]):
        draft.attempt("hint", bound[0], "stream", 1)


def _writes_once(draft: Draft, name: str) -> bool:
    """Whether the nest writes an output that nothing in the kernel reads or updates."""
    outputs = {p.name for p in draft.kernel.outputs}
    used = {n.tensor for s in draft.kernel.body for n in walk(s) if isinstance(n, Read)}
    stores = [n for s in draft.kernel.body for n in walk(s) if isinstance(n, Store)]
    used |= {s.target for s in stores if s.op is not None}
    mine = {n.target for n in walk(draft.loop(name)) if isinstance(n, Store)} & outputs
    return bool(mine) and not mine & used


# --- elementwise -----------------------------------------------------------------------------


def _elementwise(draft: Draft, prefix: list[str], width: int) -> None:
    """Chunks of the contiguous axis form the grid, with the other axes."""
    best = max(prefix, key=lambda n: (contiguous_score(draft.loop(n)), prefix.index(n)))
    order = [n for n in prefix if n != best] + [best]
    if order != prefix and not draft.attempt("reorder", tuple(order)):
        best, order = prefix[-1], prefix
    extent = constant_extent(draft, best)
    outer = order[:-1]
    before = set(draft.loop_names())
    _tile(draft, best, width)
    blocks = set(draft.loop_names()) - before
    if blocks and (extent is None or extent > CHUNK):
        before = set(draft.loop_names())
        if draft.attempt("split", *blocks, CHUNK // width):
            outer = [*outer, *(set(draft.loop_names()) - before)]
    _grid(draft, outer)


def _tile(draft: Draft, name: str, width: int) -> None:
    """Cut a parallel loop into tiles of at most `width` lanes."""
    extent = constant_extent(draft, name)
    if extent is None or extent > width:
        draft.attempt("split", name, width)
    draft.attempt("bind", name, "tile")


# --- rows ------------------------------------------------------------------------------------


def _inner_loops(draft: Draft, nest: Loop, lanes: int) -> None:
    """Cut the innermost loops into tiles; where such a loop strides, the parallel one around."""
    for loop in innermost_loops(nest):
        if loop is nest:
            if not is_parallel(nest):
                vectorise(draft, nest.axis.name, lanes * REGISTERS)
            continue
        name = loop.axis.name
        if contiguous_score(draft.loop(name)) < 0 and _cut_around(draft, nest, name, lanes):
            continue
        if is_parallel(draft.loop(name)):
            _tile(draft, name, lanes * REGISTERS)
        else:
            vectorise(draft, name, lanes * REGISTERS)


def _fetch_ahead(draft: Draft, row: str) -> None:
    """Of the loops over a row, the second that reads an input finds it in cache: let it fetch the
    next row meanwhile, so that computing and reading memory overlap."""
    inputs, seen = {p.name for p in draft.kernel.inputs}, set[str]()
    for s in draft.loop(row).body:
        if not isinstance(s, Loop) or s.kind != "for":
            continue
        rows = {
            n.tensor
            for n in walk(s)
            if isinstance(n, Read) and n.tensor in inputs
            and any(isinstance(v, Var) and v.name == row for i in n.indices for v in walk(i))
        }  # fmt: skip
        if rows & seen:
            draft.attempt("hint", s.axis.name, "ahead", 1)
            return
        seen |= rows


def _cut_around(draft: Draft, nest: Loop, name: str, lanes: int) -> bool:
    """Make lanes of the parallel loop around a strided reduction, all of which walk it."""
    around = [
        x
        for x in walk(draft.loop(nest.axis.name))
        if isinstance(x, Loop)
        and x.kind == "for"
        and x.axis.name not in (name, nest.axis.name)
        and any(isinstance(n, Loop) and n.axis.name == name for n in walk(x))
    ]
    for x in reversed(around):
        if is_parallel(x) and contiguous_score(x) > 0:
            _tile(draft, x.axis.name, lanes * 2)
            return draft.loop(x.axis.name).kind == "tile"
    return False


# --- windows ---------------------------------------------------------------------------------


def _lanes_outside(draft: Draft, name: str) -> bool:
    """Whether the last parallel axis is walked element by element, and the loops inside not."""
    loop = draft.loop(name)
    inner = [contiguous_score(x) for x in innermost_loops(loop)]
    return contiguous_score(loop) > max(inner, default=0)


def _windows(draft: Draft, prefix: list[str], width: int) -> None:
    _tile(draft, prefix[-1], width)
    around = [n for n in draft.loop_names() if n not in prefix]
    outer = prefix[:-1]
    if draft.loop(prefix[-1]).kind == "tile":
        path = [x.axis.name for x in chain(draft.loop(outer[0] if outer else around[0]))]
        outer = path[: path.index(prefix[-1])] if prefix[-1] in path else outer
    _grid(draft, outer)


# --- contractions ----------------------------------------------------------------------------


def _contraction(draft: Draft, found: Contraction, lanes: int) -> bool:
    """Register blocks: `for k { tile rows, columns { acc += left * right } }`."""
    trial = draft.fork()
    rows, columns = BLOCK_ROWS.get(lanes * 32, 6), 2 * lanes
    blocks = tile_contraction(trial, found, rows, columns, None)
    if blocks is None:
        return False
    *others, i_o, j_o = blocks.grid
    panel = _panel(trial, i_o, j_o)
    grid = [*others, panel] if panel else [*others, i_o, j_o]
    if panel:
        _stage(trial, found, panel, i_o)
    for name in (blocks.rows, blocks.columns):
        trial.attempt("unmask", name)
    inside = [blocks.rows, blocks.columns]
    for name in (*inside, *(n for pair in blocks.epilogue for n in pair)):
        trial.attempt("bind", name, "tile")
    _grid(trial, grid)
    draft.adopt(trial)
    return True


def _panel(draft: Draft, i_o: str, j_o: str) -> str | None:
    """Group column blocks into panels, outside of the rows: its name."""
    trial, before = draft.fork(), set(draft.loop_names())
    if not trial.attempt("split", j_o, PANEL):
        return None
    (panel,) = set(trial.loop_names()) - before
    if not trial.attempt("reorder", (panel, i_o, j_o)):
        return None
    draft.adopt(trial)
    return panel


def _stage(draft: Draft, found: Contraction, panel: str, i_o: str) -> None:
    """Copy the right operand's panel once, and the left one's rows for each panel, into cache."""
    for operand, loop in ((found.right, panel), (found.left, i_o)):
        tensors = {n.tensor for n in walk(operand) if isinstance(n, Read)}
        for tensor in sorted(tensors):
            before = set(draft.loop_names())
            if draft.attempt("stage", tensor, loop, "local"):
                made = [n for n in draft.loop_names() if n not in before]
                for name in made[-1:]:
                    if contiguous_score(draft.loop(name)) > 0:
                        _tile(draft, name, 32)
