"""Lazy tensors: a shape, a dtype, and how to compute the element at an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kir.dtypes import DType, i64
from kir.frontends.torch.dims import Dim, Index, same, unify
from kir.ir import ARG_REDUCTIONS, Axis, Cast, Const, Expr, Read, Reduce, Stmt, Var, const
from kir.ops import op

At = Callable[[Sequence[Index]], Expr]


CHEAP, HEAVY, REDUCED, PRODUCT = range(4)
"""What an element costs: a few instructions, a function, a reduction, a sum of products."""


class Value:
    """`at(indices)` is the element, once all dims are settled: computed, or read where the value
    is `stored` under a name. `size` estimates the expression."""

    def __init__(
        self, dims: Sequence[Dim], dtype: DType, at: At, cost: int = CHEAP, size: int = 1
    ) -> None:
        self.dims, self.dtype, self._at = tuple(dims), dtype, at
        self._cost, self._size = cost, size
        self.stored: str | None = None
        self.build: Callable[[str], tuple[Stmt, ...]] | None = None
        """What makes it, where no expression does."""
        self.plain = False
        """Whether an element is a read, which may be made to go beyond the edges."""

    @property
    def cost(self) -> int:
        return CHEAP if self.stored else self._cost

    @property
    def size(self) -> int:
        return 1 if self.stored else self._size

    def seen(self, dims: Sequence[Dim], at: At, plain: bool = False) -> Value:
        """The same elements at other indices; `plain`: an index beyond the edges is so here too."""
        made = Value(dims, self.dtype, at, self.cost, self.size)
        made.plain = plain and (self.plain or self.stored is not None)
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    def at(self, indices: Sequence[Index]) -> Expr:
        if self.stored is None:
            return self._at(indices)
        return Read(self.stored, tuple(p for index in indices for p in index), self.dtype)

    def element(self, indices: Sequence[Index]) -> Expr:
        """The element, computed even where it is stored."""
        return self._at(indices)


def padded(v: Value, indices: Sequence[Index], fill: Expr) -> Expr:
    """An element that may be beyond the edges of a plain value; there it is `fill`. A dim of 1 has
    an index too: one expression."""
    inside = [() if d.size == 1 else i for d, i in zip(v.dims, indices, strict=True)]
    found = v.at(inside)
    assert isinstance(found, Read)
    beyond: Expr = replace(found, fill=fill)
    for d, i in zip(v.dims, indices, strict=True):
        if d.size == 1 and i and i[0] != const(0):
            beyond = op("select", op("eq", i[0], const(0)), beyond, fill)
    return beyond


def fresh(shape: Sequence[int]) -> tuple[Dim, ...]:
    return tuple(Dim(n) for n in shape)


def cast(e: Expr, dtype: DType) -> Expr:
    if e.dtype == dtype:
        return e
    if isinstance(e, Const) and e.type.is_integer and dtype.is_float:
        return Const(float(e.value), dtype)
    return Cast(e, dtype)


def pointwise(
    function: Callable[..., Expr], values: Sequence[Value], dtype: DType, heavy: bool = False
) -> Value:
    """An element of the result from those of the operands, which are broadcast (NumPy's rule)."""
    rank = max((len(v.dims) for v in values), default=0)
    dims: list[Dim] = []
    for k in range(rank):
        mine = [v.dims[k - rank] for v in values if len(v.dims) >= rank - k]
        wide = [d for d in mine if d.size != 1] or mine
        made = Dim(wide[0].size)
        for d in wide:
            unify(made, d)
        dims.append(made)

    def at(indices: Sequence[Index]) -> Expr:
        return function(*(v.at(aligned(v, dims, indices)) for v in values))

    cost = max((v.cost for v in values), default=CHEAP)
    size = 1 + sum(v.size for v in values)
    return Value(dims, dtype, at, max(cost, HEAVY if heavy else CHEAP), size)


def aligned(v: Value, dims: Sequence[Dim], indices: Sequence[Index]) -> list[Index]:
    """The index of an operand, of that of a result that it is broadcast to."""
    found: list[Index] = []
    for mine, theirs, index in zip(
        v.dims, dims[len(dims) - len(v.dims) :], indices[len(dims) - len(v.dims) :], strict=True
    ):
        found.append(carried(mine, theirs, index))
    return found


def carried(mine: Dim, theirs: Dim, index: Index) -> Index:
    """An index of one dim as that of another of the same size, or of 1."""
    if mine.size == 1:
        return ()
    return index if same(mine, theirs) else mine.split(theirs.joined(index))


def permuted(v: Value, order: Sequence[int]) -> Value:
    def at(indices: Sequence[Index]) -> Expr:
        back: list[Index] = [()] * len(order)
        for k, d in enumerate(order):
            back[d] = indices[k]
        return v.at(back)

    return v.seen([v.dims[d] for d in order], at, plain=True)


def expanded(v: Value, shape: Sequence[int]) -> Value:
    dims = list(fresh(shape))
    lead = len(shape) - len(v.dims)
    for k, d in enumerate(v.dims):
        if d.size == shape[lead + k]:
            dims[lead + k] = d
    return v.seen(dims, lambda indices: v.at(aligned(v, dims, indices)))


def sliced(v: Value, axis: int, start: int, step: int, size: int) -> Value:
    """`size` elements of one axis, from `start` in steps."""
    old = v.dims[axis]
    if start == 0 and step == 1 and size == old.size:
        return v
    new = Dim(size)
    dims = [*v.dims[:axis], new, *v.dims[axis + 1 :]]

    def at(indices: Sequence[Index]) -> Expr:
        e = (
            op("mul", new.joined(indices[axis]), const(step))
            if step != 1
            else new.joined(indices[axis])
        )
        e = op("add", e, const(start)) if start else e
        moved = () if old.size == 1 else old.split(e)
        return v.at([*indices[:axis], moved, *indices[axis + 1 :]])

    return v.seen(dims, at)


def selected(v: Value, axis: int, place: int) -> Value:
    """One place of an axis, which is gone."""
    old = v.dims[axis]

    def at(indices: Sequence[Index]) -> Expr:
        here = () if old.size == 1 else old.split(const(place))
        return v.at([*indices[:axis], here, *indices[axis:]])

    return v.seen([*v.dims[:axis], *v.dims[axis + 1 :]], at, plain=True)


def inserted(v: Value, axis: int) -> Value:
    """A new axis of 1."""

    def at(indices: Sequence[Index]) -> Expr:
        return v.at([*indices[:axis], *indices[axis + 1 :]])

    return v.seen([*v.dims[:axis], Dim(1), *v.dims[axis:]], at, plain=True)


def held(index: Expr, size: int) -> Expr:
    """An index out of a tensor as an i64, kept within a dim: eager raises an error for others, and
    here at least no memory is read that is not the tensor's."""
    return op("min", op("max", cast(index, i64), const(0)), const(max(size - 1, 0)))


class Names:
    """New names for the indices of a kernel."""

    def __init__(self) -> None:
        self.count = 0

    def axes(self, dim: Dim) -> tuple[Axis, ...]:
        """An axis for each factor."""
        made = []
        for size in dim.factors:
            made.append(Axis(f"a{self.next()}", const(size)))
        return tuple(made)

    def next(self) -> int:
        self.count += 1
        return self.count - 1


def index_of(axes: Sequence[Axis]) -> Index:
    return tuple(Var(a.name) for a in axes)


def reduced(
    name: str,
    v: Value,
    axes: Sequence[int],
    keep: bool,
    names: Names,
    wide: DType | None = None,
    dtype: DType | None = None,
    body: Callable[[Expr], Expr] = lambda e: e,
) -> Value:
    """A reduction over axes, in `wide` (else the value's own dtype), cast to `dtype`."""
    dims: list[Dim] = []
    kept: list[int] = []
    for k, d in enumerate(v.dims):
        if k not in axes:
            kept.append(len(dims))
            dims.append(d)
        elif keep:
            dims.append(Dim(1))
    inner = wide or v.dtype

    def at(indices: Sequence[Index]) -> Expr:
        left = iter([indices[k] for k in kept])
        bound: list[Axis] = []
        place: list[Index] = []
        for k, d in enumerate(v.dims):
            if k in axes:
                made = names.axes(d)
                bound += made
                place.append(index_of(made))
            else:
                place.append(next(left))
        e = body(cast(v.at(place), inner))
        if not bound:  # each of one element
            return const(0) if name in ARG_REDUCTIONS else cast(e, dtype or inner)
        return cast(Reduce(name, tuple(bound), (), e), dtype or inner)

    return Value(dims, dtype or inner, at, REDUCED)


def contracted(a: Value, b: Value, batch: int, names: Names, wide: DType, dtype: DType) -> Value:
    """`[*batch, M, K] @ [*batch, K, N]`, products and sums in `wide`."""
    for x, y in zip(a.dims[:batch], b.dims[:batch], strict=True):
        unify(x, y)
    unify(a.dims[-1], b.dims[-2])
    dims = [*a.dims[:-1], b.dims[-1]]
    depth = a.dims[-1]

    def at(indices: Sequence[Index]) -> Expr:
        bound = names.axes(depth)
        k = index_of(bound)
        left = a.at([*indices[:-1], k])
        k = carried(b.dims[-2], depth, k)
        lead = [carried(y, x, i) for x, y, i in zip(a.dims, b.dims[:batch], indices)]
        right = b.at([*lead, k, indices[-1]])
        product = op("mul", cast(left, wide), cast(right, wide))
        return cast(Reduce("sum", bound, (), product) if bound else product, dtype)

    return Value(dims, dtype, at, PRODUCT)
