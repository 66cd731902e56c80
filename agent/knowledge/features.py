"""What a kernel is like, in the words of the vocabulary: for retrieval, and for a model's prompt.

Works on specs and on kernels in any stage of scheduling; it looks at the text, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kir.cost import cost
from kir.errors import ConstraintError
from kir.ir import (
    ARG_REDUCTIONS,
    Buffer,
    Cast,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Store,
    Var,
    children,
    walk,
)
from kir.plan.common import HEAVY

COMPARISONS = frozenset(("lt", "le", "gt", "ge"))
ROOTS = frozenset(("sqrt", "rsqrt"))
SMALL, LARGE = 256 << 10, 32 << 20
LOW, HIGH = 4, 32


def kernel_features(kernel: Kernel, dims: Mapping[str, int] | None = None) -> frozenset[str]:
    """Words of `FEATURES` that hold of a kernel; where its dims are given by `dims` or are
    constants, those about its size too."""
    found = _of_expressions(kernel) | _of_statements(kernel) | _of_types(kernel)
    if _normalises(kernel):
        found.add("normalisation")
    sums = {"sum", "contraction", "matvec"} & found
    if "extremum" in found and sums and _has_op(kernel, {"exp", "exp2"}):
        found.add("softmax")
    if "window" in found:
        found.discard("matvec")
    if not found & {
        "contraction", "matvec", "sum", "extremum", "argextremum", "recurrence", "gather",
        "scatter", "window",
    }:  # fmt: skip
        found.add("elementwise")
    known = {d.name: d.default for d in kernel.dims if d.default is not None} | dict(dims or {})
    if all(d.name in known for d in kernel.dims):
        found |= _of_size(kernel, known)
    return frozenset(found)


def _of_expressions(kernel: Kernel) -> set[str]:
    found: set[str] = set()
    for node in walk(kernel):
        if isinstance(node, Read):
            found |= _of_read(node)
        elif isinstance(node, Op):
            if node.name in ("philox", "rand"):
                found.add("random")
            elif node.name in HEAVY:
                found.add("functions")
            if node.name in ("div", "recip") or node.name in ROOTS:
                found.add("division")
            if node.name in ("floordiv", "mod", "tdiv", "trem") and not _power_of_two(node.args[1]):
                found.add("integer_division")
            if node.name in COMPARISONS and all(_loop_indices(a, kernel) for a in node.args):
                found.add("triangular")
        elif isinstance(node, Reduce):
            found |= _of_reduction(node.name, node.body, {a.name for a in node.axes})
        elif isinstance(node, Cast) and isinstance(node.value, Op | Read | Reduce):
            found.add("casts")
    return found


def _of_read(read: Read) -> set[str]:
    found = set()
    if read.fill is not None:
        found.add("padded")
    for index in read.indices:
        if any(isinstance(n, Read) for n in walk(index)):
            found.add("gather")
        if isinstance(index, Op) and index.name in ("add", "sub"):
            terms = [frozenset(_names(a)) for a in index.args]
            if all(terms) and _is_window(index):
                found.add("window")
    return found


def _is_window(index: Op) -> bool:
    """Whether an index is a sum of two or more that reach a neighbour of each other's elements: no
    index is scaled by a number greater than the others' range, as the blocks of a split are."""
    names = list(_names(index))
    blocks = any(isinstance(n, Op) and n.name == "mul" and _is_block(n) for n in walk(index))
    return len(set(names)) > 1 and not blocks


def _is_block(product: Op) -> bool:
    """`i_o * 64`: an outer loop of a split, by the factor's size."""
    return any(isinstance(a, Const) and int(a.value) >= 4 for a in product.args)


def _of_reduction(name: str, body: Expr, axes: set[str]) -> set[str]:
    if name in ARG_REDUCTIONS:
        return {"argextremum"}
    if name in ("max", "min"):
        return {"extremum"}
    return {_product(body, axes) or "sum"} if name in ("sum", "add") else set()


def _product(e: Expr, axes: set[str] | None) -> str | None:
    """What a summed value is: a `contraction`, a `matvec`, or no product of tensors (None).

    `axes` are the indices summed over, where they are known."""
    while isinstance(e, Cast):
        e = e.value
    if not isinstance(e, Op) or e.name not in ("mul", "fma"):
        return None
    left, right = (frozenset(_element_names(a)) for a in e.args[:2])
    shared = left & right
    if not shared or (axes is not None and not shared & axes):
        return None
    alone = (bool(left - right), bool(right - left))
    return {(True, True): "contraction", (False, False): None}.get(alone, "matvec")


def _of_statements(kernel: Kernel) -> set[str]:
    found: set[str] = set()
    outputs = {p.name for p in kernel.outputs}
    temporaries = [
        s
        for s in walk(kernel)
        if (isinstance(s, Buffer) and s.space == "global")
        or (isinstance(s, Define) and s.name not in outputs)
    ]
    if len(temporaries) >= 2:
        found.add("chain")
    for node in walk(kernel):
        if isinstance(node, Store):
            if any(isinstance(n, Read) for index in node.indices for n in walk(index)):
                found.add("scatter")
            if node.op is not None and not found & {"scatter"}:
                found |= _of_reduction(node.op, node.value, _free(node.value, node))
        elif isinstance(node, Loop):
            if node.where:
                found.add("masked")
            if node.kind == "for" and _recurs(node):
                found.add("recurrence")
        elif isinstance(node, If):
            found.add("masked")
    if any(_transposed(indices, value) for indices, value in _results(kernel)):
        found.add("transposed")
    return found


def _free(value: Expr, store: Store) -> set[str]:
    """Indices of a summed value that the target lacks: those it is summed over."""
    return set(_names(value)) - {n for index in store.indices for n in _names(index)}


def _recurs(loop: Loop) -> bool:
    """Whether a body stores a slice for its iteration and reads one of another iteration."""
    name = loop.axis.name
    slices = {
        s.name if isinstance(s, Define) else s.target
        for s in walk(loop)
        if isinstance(s, Define | Store)
        and (
            any(isinstance(d, Var) and d.name == name for d in s.dims)
            if isinstance(s, Define)
            else any(name in _names(i) for i in s.indices) and s.op is None
        )
    }
    return any(
        isinstance(n, Read)
        and n.tensor in slices
        and any(name in _names(i) and not isinstance(i, Var) for i in n.indices)
        for n in walk(loop)
    )


def _results(kernel: Kernel) -> Iterator[tuple[tuple[str, ...], Expr]]:
    """The index names and the value of each definition and plain store of rank 2 or more."""
    for node in walk(kernel):
        if isinstance(node, Define) and len(node.dims) > 1:
            yield tuple(d.name for d in node.dims), node.value
        elif isinstance(node, Store) and len(node.indices) > 1 and node.op is None:
            yield tuple(i.name if isinstance(i, Var) else "" for i in node.indices), node.value


def _transposed(indices: tuple[str, ...], value: Expr) -> bool:
    """Whether some read has the last index of a result before another index of it, its last."""
    last, others = indices[-1], set(indices[:-1]) - {""}
    return any(
        isinstance(n, Read)
        and len(n.indices) > 1
        and any(isinstance(i, Var) and i.name == last for i in n.indices[:-1])
        and isinstance(n.indices[-1], Var)
        and n.indices[-1].name in others
        for n in _outside_reductions(value)
    )


def _outside_reductions(e: Node) -> Iterator[Node]:
    yield e
    for child in () if isinstance(e, Reduce) else children(e):
        yield from _outside_reductions(child)


def _of_types(kernel: Kernel) -> set[str]:
    found = set()
    for p in kernel.params:
        name = p.type.name
        if name.startswith("f8"):
            found.add("f8")
        elif name in ("i8", "u8"):
            found.add("i8")
        elif name in ("f64", "f32", "f16", "bf16"):
            found.add(name)
    if any(d.default is None for d in kernel.dims):
        found.add("symbolic")
    return found


def _of_size(kernel: Kernel, dims: Mapping[str, int]) -> set[str]:
    found: set[str] = set()
    try:
        work = cost(kernel, dims)
    except ConstraintError:  # extents that are read from a tensor: nobody knows
        return found
    if work.bytes < SMALL:
        found.add("small")
    if work.bytes > LARGE:
        found.add("large")
    if work.operations < LOW * work.bytes:
        found.add("low_intensity")
    if work.bytes and work.operations >= HIGH * work.bytes:
        found.add("high_intensity")
    return found


def _names(e: Node) -> Iterator[str]:
    return (n.name for n in walk(e) if isinstance(n, Var))


def _element_names(e: Expr) -> Iterator[str]:
    """The indices that a factor's reads go along; not those that only choose a group (`k // 4`)."""
    for read in walk(e):
        if isinstance(read, Read):
            for index in read.indices:
                yield from _along(index)


def _along(index: Node) -> Iterator[str]:
    if isinstance(index, Var):
        yield index.name
    elif not (isinstance(index, Op) and index.name in ("floordiv", "tdiv")):
        for child in children(index):
            yield from _along(child)


def _normalises(kernel: Kernel) -> bool:
    """Whether a sum goes into a root, by way of other definitions or not."""
    sums = any(isinstance(n, Reduce) and n.name == "sum" for n in walk(kernel)) or any(
        isinstance(n, Store) and n.op == "add" for n in walk(kernel)
    )
    return sums and any(
        isinstance(n, Op) and n.name in ROOTS and any(isinstance(m, Read | Reduce) for m in walk(n))
        for n in walk(kernel)
    )


def _loop_indices(e: Expr, kernel: Kernel) -> bool:
    """Whether an operand of a comparison has an index: a var that is no dim, in plain sums."""
    dims = {d.name for d in kernel.dims}
    return not any(isinstance(n, Read) for n in walk(e)) and any(n not in dims for n in _names(e))


def _power_of_two(e: Expr) -> bool:
    return isinstance(e, Const) and int(e.value) > 0 and int(e.value) & (int(e.value) - 1) == 0


def _has_op(kernel: Kernel, names: set[str] | frozenset[str]) -> bool:
    return any(isinstance(n, Op) and n.name in names for n in walk(kernel))
