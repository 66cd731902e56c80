"""Einstein's notation: `einsum("bik,bkj->bij")` is a kernel."""

from __future__ import annotations

from kir.dtypes import DTYPES, DType, f32, i32
from kir.errors import UsageError
from kir.frontends.builder import Type
from kir.ir import Kernel
from kir.syntax import parse_kernel

HINT = 'as in `einsum("bik,bkj->bij")`: lower-case letters, a comma between operands'


def einsum(
    spec: str,
    dtype: str | Type = "f32",
    *,
    accumulate: str | Type | None = None,
    name: str = "einsum",
) -> Kernel:
    """The kernel of a product of tensors, summed over the indices that the result does not have.

    The operands are `x0`, `x1`, ..., the result `y`, all of `dtype`; the index `i` has the extent
    `I`. Without `->` the result has the indices that occur once, in alphabetical order, as in
    NumPy. An index may occur twice in an operand: a diagonal. Products are taken and summed in
    `accumulate`: f32 for narrower floats, i32 for narrower integers, unless it is given.

    UsageError where the text is no such notation.
    """
    operands, result = _parts(spec)
    kind, wide = _dtype(dtype), _accumulator(_dtype(dtype), accumulate)
    letters = list(dict.fromkeys("".join(operands)))
    summed = [c for c in letters if c not in result]
    dims = ", ".join(c.upper() for c in letters)

    def shape(indices: str) -> str:
        return f"[{', '.join(c.upper() for c in indices)}]" if indices else ""

    def read(k: int, indices: str) -> str:
        element = f"x{k}[{', '.join(indices)}]" if indices else f"x{k}"
        return element if kind == wide else f"{wide}({element})"

    value = " * ".join(read(k, o) for k, o in enumerate(operands))
    if summed:
        value = f"sum({', '.join(f'{c}: {c.upper()}' for c in summed)}) {value}"
    if kind != wide:
        value = f"{kind}({value})"
    places = f"[{', '.join(f'{c}: {c.upper()}' for c in result)}]" if result else ""
    inputs = ", ".join(f"x{k}: {kind}{shape(o)}" for k, o in enumerate(operands))
    head = f"kernel {name}[{dims}]" if dims else f"kernel {name}"
    text = f"{head}({inputs}) -> (y: {kind}{shape(result)}) {{ y{places} = {value} }}"
    return parse_kernel(text, f"<einsum {spec}>")


def _parts(spec: str) -> tuple[list[str], str]:
    """The indices of each operand, and of the result."""
    left, arrow, right = spec.replace(" ", "").partition("->")
    operands = left.split(",")
    for c in "".join([*operands, right]):
        if not ("a" <= c <= "z"):
            raise UsageError(f"`{c}` is no index of an einsum: `{spec}`", hint=HINT)
    every = "".join(operands)
    if not arrow:
        right = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    for c in right:
        if c not in every or right.count(c) > 1:
            why = "twice in the result" if c in every else "in no operand"
            raise UsageError(f"the index `{c}` is {why}: `{spec}`", hint=HINT)
    return operands, right


def _dtype(given: str | Type) -> DType:
    name = given.name if isinstance(given, Type) else given
    if name not in DTYPES or DTYPES[name].is_bool:
        raise UsageError(f"an einsum has no dtype `{name}`", hint="dtypes: " + ", ".join(DTYPES))
    return DTYPES[name]


def _accumulator(dtype: DType, given: str | Type | None) -> DType:
    if given is not None:
        return _dtype(given)
    if dtype.bits >= 32:
        return dtype
    return f32 if dtype.is_float else i32
