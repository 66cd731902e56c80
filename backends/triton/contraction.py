"""Finding sums of products that the matrix unit computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kir.backends.triton.scope import ValueBuffer, names_in
from kir.backends.triton.values import Value
from kir.dtypes import DType
from kir.ir import Cast, Expr, Op, Read, Store, Var, substitute, walk

if TYPE_CHECKING:
    from kir.backends.triton.statements import Access, Statements

LEAST = 16
"""The least extent of a block on the matrix unit; 32 along k for 8-bit operands."""


@dataclass(frozen=True)
class Contraction:
    """`left` varies along m and k, `right` along k and n (`axes` = m, n, k).

    `cast` is the Triton type of computed operands, None where they have it already; `raw` says
    that a tensor's element lies in memory as the matrix unit takes it. `strict`: masked-off
    elements of the accumulator are read, so they must stay as they are.
    """

    left: Expr
    right: Expr
    axes: tuple[str, str, str]
    cast: str | None
    raw: bool
    options: str
    strict: bool


def match_contraction(
    program: Statements, s: Store, buffer: ValueBuffer, target: Value
) -> Contraction | None:
    """The contraction in `acc[m, n] += a * b`, or None: then it is an ordinary update."""
    product = s.value
    if s.op != "add" or not isinstance(product, Op) or product.name != "mul":
        return None
    lanes = {lane.name: lane.extent for lane in program.lanes}
    if len(target.axes) != 2 or len(lanes) != 3 or buffer.private:
        return None
    m, n = target.axes
    (k,) = set(lanes) - {m, n}
    left, right = product.args
    if program.lanes_in(left) == {k, n} and program.lanes_in(right) == {m, k}:
        left, right = right, left
    if program.lanes_in(left) != {m, k} or program.lanes_in(right) != {k, n}:
        return None
    masked = [set(c.value.axes) for c in program.conditions]
    if any(len(axes) > 1 and not axes <= {m, n} for axes in masked):
        return None
    if not _fits(program, left, {m, k}) or not _fits(program, right, {k, n}):
        return None
    kind = _operands(left, right, buffer.type)
    if kind is None:
        return None
    narrow, cast, options = kind
    least_k = 32 if narrow.bits == 8 and narrow.is_integer else LEAST
    if lanes[m] < LEAST or lanes[n] < LEAST or lanes[k] < least_k:
        return None
    strict = any(axes & {m, n} for axes in masked) and not _masked_alike(program, s)
    inner = (_uncast(left, narrow), _uncast(right, narrow))
    raw = narrow.bits != 8 or narrow.is_integer
    return Contraction(*inner, (m, n, k), cast, raw, options, strict)


def _fits(program: Statements, e: Expr, axes: set[str]) -> bool:
    """Whether every read of an operand can run on the operand's own lanes."""
    reads = [n for n in walk(e) if isinstance(n, Read)]
    return all(
        program.is_safe(r) or program.needed(program.lanes_in(r), False)[1] <= axes for r in reads
    )


def _operands(left: Expr, right: Expr, acc: DType) -> tuple[DType, str | None, str] | None:
    """The operands' own dtype, the Triton type they are cast to, and the options of tl.dot."""
    inner = [e.value.dtype if isinstance(e, Cast) else e.dtype for e in (left, right)]
    if acc.name == "f32":
        ieee = 'input_precision="ieee"'
        if inner[0] == inner[1] and inner[0].name in ("f16", "bf16"):
            return inner[0], f"tl.{'float16' if inner[0].name == 'f16' else 'bfloat16'}", ieee
        if all(t.name in ("f8e4m3", "f8e5m2") for t in inner):
            return inner[0], "tl.float16", ieee  # each fp8 value is an f16
        return left.dtype, None, ieee
    if acc.name == "i32" and inner[0].name == inner[1].name == "i8":
        return inner[0], None, "out_dtype=tl.int32"
    return None


def _uncast(e: Expr, narrow: DType) -> Expr:
    if narrow.bits < 32 and isinstance(e, Cast) and e.value.dtype.bits == narrow.bits:
        return e.value
    return e


def _masked_alike(program: Statements, s: Store) -> bool:
    """Whether each read of the accumulator stands under the masks of this update, so that no one
    sees what a product with zeros left in masked-off elements."""
    uses = program.uses[s.target]
    own = next(a for a in uses if a.node is s)
    needed = _canonical(own)
    return all(needed <= _canonical(a) for a in uses if isinstance(a.node, Read) and not a.update)


def _canonical(a: Access) -> set[Expr]:
    """The masks on the indices of an access, by the place of the lane in it."""
    names: dict[str, Expr] = {
        i.name: Var(f"${p}") for p, i in enumerate(a.node.indices) if isinstance(i, Var)
    }
    lanes = {name for name, _ in a.lanes}
    found: set[Expr] = set()
    for c in a.conditions:
        used = {v for v in names_in(c) if v in lanes}
        if used and used <= set(names):
            found.add(substitute(c, names))
    return found
