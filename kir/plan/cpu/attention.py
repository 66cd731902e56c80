"""Attention: a product, a softmax over its rows, a second product, in one pass over the keys.

The two products and the softmax between them are found by their structure, whatever scales, masks,
biases or casts stand around them, and become blocks of queries by blocks of keys: the running
greatest score, sum and output of `online` (flash attention: T. Dao et al., NeurIPS 2022; M. N. Rabe
and C. Staats, "Self-attention does not need O(n^2) memory", 2021). No score leaves the cache.

Lanes run along the queries, so that the queries alone are transposed, once for a block: the keys
are read as they lie, and greatest scores and sums are kept lane by lane, with no reduction across
lanes. Both products keep a block of rows by two vectors in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.check import check_kernel
from kir.errors import RewriteError, ScopeError
from kir.ir import Cast, Define, Loop, Op, Read, Reduce, Store, walk
from kir.plan.common import (
    HEAVY,
    Draft,
    constant_extent,
    contiguous_score,
    contraction_in,
    inline_pointwise,
    is_parallel,
    nests,
    tile_contraction,
)
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import tile
from kir.rewrites.base import buffers_of, fresh, names_in, path_to, statements, var_names
from kir.rewrites.places import places, tensors_read

BLOCK = 64
"""Queries and keys of a block: their scores, and what is staged for them, fit the second cache."""
SHORT = 512
"""Keys up to which blocks are halved where keys ahead of a query are left out: half a block of each
row is computed in vain, which is then more than smaller blocks cost."""
ROWS = 4
"""Rows of a register block of two vectors: it divides a block, and eight accumulators hide the
latency of an fma."""


@dataclass(frozen=True)
class _Roles:
    """The definitions of an attention, by name. `weights` are exp(scores - greatest), `total`
    their sum over the keys (None where nothing divides by it); `values` are the weights as the
    second product takes them (the weights themselves, or a rounded copy)."""

    scores: str
    greatest: str
    weights: str
    total: str | None
    values: str
    output: str

    @property
    def rows(self) -> tuple[str, ...]:
        """Those with an element for each key, or reduced over the keys."""
        named = (self.scores, self.greatest, self.weights, self.total, self.values)
        return tuple(dict.fromkeys(n for n in named if n is not None))


def attention(draft: Draft, chip: Chip) -> bool:
    """Schedule the first attention of a spec, all its definitions made loops; False, and nothing
    done, where there is none, or where some step on the way is refused."""
    if not _may_be(draft):
        return False
    trial = draft.fork()
    try:
        roles = _prepare(trial)
        if roles is None:
            return False
        inline_pointwise(trial)
        roles = _rounded(trial, roles)
        casts = _outline_casts(trial, roles)
        trial.take("loops")
        _Schedule(trial, roles, casts, chip).build()
        check_kernel(trial.kernel)
    except (RewriteError, ScopeError):
        return False  # ScopeError: lanes beyond the last query would read what is not converted
    draft.adopt(trial)
    return True


# --- definitions -----------------------------------------------------------------------------


def _defines(draft: Draft) -> dict[str, Define]:
    return {s.name: s for s in draft.kernel.body if isinstance(s, Define)}


def _reduction(stmt: Define, name: str) -> Reduce | None:
    """The one reduction in a definition, where there is just one and it is called so."""
    found = [n for n in walk(stmt) if isinstance(n, Reduce)]
    return found[0] if len(found) == 1 and found[0].name == name else None


def _may_be(draft: Draft) -> bool:
    """Whether some definition reduces what a `max` over another one takes part in."""
    found = _defines(draft).values()
    names = {d.name for d in found if _reduction(d, "max")}
    return any(names & tensors_read(d) and _has_exp(d) for d in found)


def _has_exp(stmt: Define) -> bool:
    return any(isinstance(n, Op) and n.name in ("exp", "exp2") for n in walk(stmt))


def _prepare(draft: Draft) -> _Roles | None:
    """Inline what stands between the parts of an attention, divide by the sum at the end."""
    _inline_between(draft)
    for define in list(_defines(draft).values()):
        roles = _roles(draft, define)
        if roles is None:
            continue
        draft.attempt("factor", define.name)
        return roles
    return None


def _inline_between(draft: Draft) -> None:
    """Inline definitions that reduce nothing, but for those with functions that cost, and those
    that a single other one reads, element by element."""
    outputs = {p.name for p in draft.kernel.outputs}
    for name, define in _defines(draft).items():
        if name in outputs:
            continue
        readers = [d for d in _defines(draft).values() if name in tensors_read(d)]
        plain = not any(
            isinstance(n, Reduce) or (isinstance(n, Op) and n.name in HEAVY) for n in walk(define)
        )
        if len(readers) == 1:
            (user,) = readers
            inside = any(name in tensors_read(r) for r in walk(user) if isinstance(r, Reduce))
            alike = len(user.axes) == len(define.axes)
            if plain or (alike and not inside and not _has_exp(user)):
                draft.attempt("inline", name)


def _roles(draft: Draft, define: Define) -> _Roles | None:
    """The attention that ends in `define`, a sum over keys of weights times values."""
    found = _defines(draft)
    last = _reduction(define, "sum")
    if last is None or len(last.axes) != 1:
        return None
    for weights in (found[n] for n in sorted(tensors_read(last.body)) if n in found):
        if not _has_exp(weights) or any(isinstance(n, Reduce) for n in walk(weights)):
            continue
        before = [found[n] for n in sorted(tensors_read(weights)) if n in found]
        greatest = [d for d in before if _reduction(d, "max")]
        scores = [d for d in before if _reduction(d, "sum")]
        if len(greatest) != 1 or len(scores) != 1:
            continue
        total = [
            d.name
            for d in found.values()
            if d is not define and weights.name in tensors_read(d) and _reduction(d, "sum")
        ]
        rank = len(greatest[0].axes)
        ranks = [len(d.axes) for d in (weights, scores[0], define)]
        if len(total) > 1 or ranks != [rank + 1] * 3:
            continue
        return _Roles(
            scores[0].name,
            greatest[0].name,
            weights.name,
            total[0] if total else None,
            weights.name,
            define.name,
        )
    return None


def _rounded(draft: Draft, roles: _Roles) -> _Roles:
    """Where the second product takes a rounding of the weights, a definition for it."""
    define = _defines(draft)[roles.output]
    for place in places(define):
        e = place.expr
        if isinstance(e, Cast) and roles.weights in tensors_read(e) and place.reductions:
            name = fresh(f"{roles.weights}_rounded", names_in(draft.kernel))
            if draft.attempt("outline", define.name, place.path, into=name):
                return _Roles(
                    roles.scores, roles.greatest, roles.weights, roles.total, name, define.name
                )
    return roles


def _outline_casts(draft: Draft, roles: _Roles) -> tuple[str, ...]:
    """Definitions for inputs that the products take in a wider type: they are converted once."""
    made: list[str] = []
    for name in (roles.scores, roles.output):
        while True:
            define = _defines(draft)[name]
            found = next(
                (
                    p
                    for p in places(define)
                    if isinstance(p.expr, Cast)
                    and isinstance(p.expr.value, Read)
                    and p.expr.value.tensor not in _defines(draft)
                    and p.reductions
                ),
                None,
            )
            if found is None:
                break
            assert isinstance(found.expr, Cast) and isinstance(found.expr.value, Read)
            into = fresh(f"{found.expr.value.tensor}_wide", names_in(draft.kernel))
            if not draft.attempt("outline", name, found.path, into=into):
                break
            made.append(into)
    return tuple(made)


# --- loops -----------------------------------------------------------------------------------


class _Schedule:
    """The steps from canonical loops on; RewriteError where one of them is refused."""

    def __init__(self, draft: Draft, roles: _Roles, casts: tuple[str, ...], chip: Chip) -> None:
        self.draft, self.roles, self.casts, self.chip = draft, roles, casts, chip
        self.lanes = 2 * chip.lanes
        self.depth = len(self._around(roles.greatest))
        self.side = BLOCK // 2 if self._is_short() else BLOCK
        self.tiles: list[str] = []
        self.blocked = False
        self.sums = {
            name: self._accumulator(name)
            for name in (roles.greatest, roles.total, roles.output)
            if name is not None
        }

    def build(self) -> None:
        self._merge_rows()
        self._online()
        self._blocks()
        self._products()
        self._softmax()
        self._rest()

    def _is_short(self) -> bool:
        """Whether the keys are few, and bounded by the place of the query."""
        row, key = self._around(self.roles.scores)[self.depth - 1 :][:2]
        extent = constant_extent(self.draft, key)
        bounds = (
            n
            for n in walk(self.draft.loop(key))
            if isinstance(n, Op) and n.name in ("lt", "le", "gt", "ge")
        )
        return (
            extent is not None
            and extent <= SHORT
            and any({row, key} <= var_names(n) for n in bounds)
        )

    # --- looking

    def _paths(self, target: str, update: str | None = None) -> list[list[str]]:
        """The loops around each store to `target`, outermost first."""
        body = self.draft.kernel.body
        found = []
        for s in statements(body):
            if isinstance(s, Store) and s.target == target and s.op == update:
                around = path_to(body, s) or ()
                found.append([x.axis.name for x in around if isinstance(x, Loop)])
        return found

    def _around(self, target: str, update: str | None = None) -> list[str]:
        """The loops around the first store to `target`."""
        found = self._paths(target, update)
        if not found:
            raise self._no(f"nothing is stored to `{target}`")
        return found[0]

    def _no(self, message: str) -> RewriteError:
        return RewriteError(message, kernel=self.draft.kernel)

    def _accumulator(self, name: str) -> str:
        """The scalar that the nest of a definition accumulates into."""
        nest = self.draft.loop(self._around(name)[0])
        stores = [n for n in walk(nest) if isinstance(n, Store) and n.op is not None]
        if len({s.target for s in stores}) != 1:
            raise self._no(f"`{name}` is no single reduction")
        return stores[0].target

    def _update(self, name: str) -> str:
        return "max" if name == self.roles.greatest else "add"

    def _reducing(self, name: str) -> list[str]:
        return self._around(self.sums[name], self._update(name))

    # --- steps

    def _merge_rows(self) -> None:
        """One row of queries in one iteration. The last nest is fused on its own: the wide copies
        of its operands, which stand in front of it, are no part of a row."""
        tops = [loop.axis.name for loop in nests(self.draft.kernel)]
        named = {self._around(name)[0] for name in self.roles.rows}
        inner = [name for name in tops if name in named]
        self.draft.take("merge", inner[0], self.depth, until=inner[-1])
        rows = self._around(self.roles.scores)[: self.depth]
        last = self._around(self.roles.output)[: self.depth]
        for one, other in zip(rows, last, strict=True):
            self.draft.take("fuse", one, other)
        self.row = rows[-1]

    def _online(self) -> None:
        """One loop over blocks of keys for all of a row."""
        draft, roles = self.draft, self.roles
        mapped = [roles.scores, roles.weights, roles.values]
        keys = [self._around(n)[-1] for n in dict.fromkeys(mapped)]
        keys += [self._reducing(n)[-1] for n in self.sums]
        extent = constant_extent(draft, keys[0])
        self.blocked = extent is None or extent > self.side
        if self.blocked:
            draft.take("split", tuple(keys), self.side)
        *_, column = self._around(roles.output)
        draft.take("fission", column)
        inner = self._reducing(roles.output)[self.depth :]
        draft.take("reorder", (*inner[1:], inner[0]))
        if self.blocked:
            first, waiting = self._reducing(roles.greatest), self._around(roles.weights)
            scores = self._around(roles.scores)[self.depth]
            draft.take("merge", scores, until=first[self.depth])
            draft.take("merge", waiting[self.depth])
            draft.take("online", scores, waiting[self.depth])
            self.block = scores
        for name in roles.rows:
            draft.attempt("contract", name, "reg")
        if self.blocked:
            draft.attempt("skip", self.block)

    def _blocks(self) -> None:
        """Blocks of queries, around those of keys."""
        draft, row = self.draft, self.row
        draft.take("split", row, self.side)
        self.grid = self._around(self.sums[self.roles.greatest], "max")[: self.depth]
        draft.take("fission", row)
        if self.blocked:
            around = self._around(self.roles.scores)
            row = around[around.index(self.block) - 1]
            draft.take("reorder", (self.block, row))
            draft.take("fission", row)
        for name in dict.fromkeys((self.roles.scores, self.roles.weights, self.roles.values)):
            (made,) = (b for b in buffers_of(draft.kernel.body) if b.name == name)
            rank = len(made.shape)
            draft.take("layout", name, (rank - 1, *range(1, rank - 1), 0))

    def _products(self) -> None:
        """Register blocks of a few rows by two vectors: of scores, keys by queries; of the output,
        queries by columns."""
        draft, roles = self.draft, self.roles
        inside = len(self.grid) + self.blocked
        row = self._around(roles.scores)[inside]
        self._widen(row)
        self._transpose_queries(row)
        found = contraction_in(draft.loop(self._around(roles.scores)[inside]))
        if found is None:
            raise self._no("the scores are no contraction")
        tiled = tile_contraction(draft, found, ROWS, self.lanes, None)
        if tiled is None:
            raise self._no("the scores cannot be tiled")
        self.tiles += [tiled.rows, tiled.columns, *(n for pair in tiled.epilogue for n in pair)]
        row, key, column = self._reducing(roles.output)[inside:]
        row_o, column_o = self._cut(row, ROWS), self._cut(column, self.lanes)
        draft.take("reorder", (row_o, column_o, key, row, column))
        before = set(draft.loop_names())
        draft.take("stage_out", self.sums[roles.output], column_o, "reg")
        self.tiles += [row, column, *(n for n in draft.loop_names() if n not in before)]

    def _cut(self, name: str, width: int) -> str:
        """Split a loop; the name of the outer one."""
        before = set(self.draft.loop_names())
        self.draft.take("split", name, width)
        (outer,) = set(self.draft.loop_names()) - before
        return outer

    def _widen(self, row: str) -> None:
        """Convert what is narrow once for a block, where it is used, in the order of its reads."""
        update = self._product(row)
        for name in self.casts:
            (store,) = (
                n for n in walk(self.draft.kernel) if isinstance(n, Store) and n.target == name
            )
            (read,) = (n for n in walk(store.value) if isinstance(n, Read))
            kept = [n for i in read.indices for n in sorted(var_names(i))]
            mine = [n for i in store.indices for n in sorted(var_names(i))]
            order = tuple(mine.index(n) for n in kept)
            if order != tuple(range(len(order))):
                self.draft.take("layout", name, order)
            reads = [n for n in walk(update) if isinstance(n, Read) and n.tensor == name]
            queries = any(row in var_names(i) for n in reads for i in n.indices)
            place = self.block if self.blocked and not queries else self.grid[-1]
            self.draft.take("compute_at", name, place, "local")

    def _transpose_queries(self, row: str) -> None:
        """Stage the queries of a block so that lanes run along them."""
        for read in [n for n in walk(self._product(row)) if isinstance(n, Read)]:
            at = [d for d, i in enumerate(read.indices) if row in var_names(i)]
            order = (*(d for d in range(len(read.indices)) if d not in at), *at)
            if len(at) == 1 and read.tensor in self.casts:
                self.draft.take("layout", read.tensor, order)
            elif len(at) == 1:
                self.draft.take("stage", read.tensor, self.grid[-1], "local", order=order)

    def _product(self, row: str) -> Store:
        """The accumulation of the scores, in a nest over rows."""
        nest = self.draft.loop(row)
        return next(s for s in statements((nest,)) if isinstance(s, Store) and s.op == "add")

    def _softmax(self) -> None:
        """Lanes along the queries, the loop over keys inside."""
        draft, roles = self.draft, self.roles
        inside = len(self.grid) + self.blocked
        named = [self._around(n)[inside] for n in dict.fromkeys((roles.weights, roles.values))]
        if roles.total is not None:
            named.append(self._reducing(roles.total)[inside])
        first, *_, last = sorted(named, key=draft.loop_names().index) * 2
        if first != last:
            draft.take("merge", first, 2, until=last)

    def _rest(self) -> None:
        """Tiles for what has none yet, and the grid."""
        draft = self.draft
        for name in self.tiles:
            draft.attempt("unmask", name)
            draft.take("bind", name, "tile")
        top = draft.loop(self.grid[-1])
        for s in statements(top.body):
            if isinstance(s, Loop) and s.kind == "for" and s.axis.name not in self.grid:
                self._tile(s.axis.name)
        for name in self.grid:
            draft.take("bind", name, "grid")

    def _tile(self, name: str) -> None:
        """Cut the parallel loop into tiles where nothing around or inside is cut."""
        loop = self.draft.loop(name)
        around = path_to(self.draft.kernel.body, loop) or ()
        if name == getattr(self, "block", None) or not is_parallel(loop):
            return
        if any(isinstance(x, Loop) and x.kind == "tile" for x in (*around, *walk(loop))):
            return
        if contiguous_score(loop) > 0:
            tile(self.draft, name, self.lanes)


__all__ = ["attention"]
