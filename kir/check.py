"""The checker: is every access in bounds, every promise kept, every output written?

`check_kernel` raises the first error, `check_module` gives all. Both work on symbolic shapes, for
every value of the dims that the constraints allow; compile-time parameters have their defaults
(check the specialised kernel for others). What depends on indices read from tensors is listed in
the `Report`, for the interpreter and debug builds to check at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kir.analysis.cover import (
    Escape,
    differs,
    escape,
    negative,
    read_too_early,
    reads_data,
    unwritten,
)
from kir.analysis.depend import describe, parallel
from kir.analysis.model import Access, Decl, Model, model_of
from kir.analysis.sets import Undecided
from kir.analysis.validate import validate
from kir.errors import (
    BoundsError,
    KirError,
    PromiseError,
    RaceError,
    ScopeError,
    ShapeError,
    Source,
    UnwrittenError,
)
from kir.graphs import shape_errors
from kir.ir import Axis, Buffer, Const, Define, Expr, Kernel, Module, const

SPECIALISE = (
    "the sets know products with constants only: make the dim a compile-time parameter "
    "(`[N = 64]`), or check with its value (`--shape N=64`)"
)


@dataclass
class Report:
    """What a check could not settle on its own."""

    runtime_checked: list[Access] = field(default_factory=list)
    """Accesses whose indices are read from tensors: in bounds only if the data say so."""


def check_kernel(kernel: Kernel, source: Source | None = None) -> Report:
    """Check one kernel: raises the KirError of its first fault, else gives a Report."""
    report = Report()
    for error in find_errors(kernel, report):
        raise error.at(source=source, kernel=kernel)
    return report


def check_module(module: Module, source: Source | None = None) -> list[KirError]:
    """All faults of all kernels of a module, in the order of the text, then of its graphs."""
    found: list[KirError] = []
    for kernel in module.kernels().values():
        found += [e.at(source=source, kernel=kernel) for e in find_errors(kernel, Report())]
    for graph in module.graphs().values():
        found += [e.at(source=source) for e in shape_errors(module, graph)]
    return found


def find_errors(kernel: Kernel, report: Report) -> Iterator[KirError]:
    """Every fault of `kernel`, one per rule and place. A malformed kernel has one, its first."""
    try:
        validate(kernel)
    except KirError as error:
        yield error
        return
    model = model_of(kernel)
    rules: tuple[Callable[[Model, Report], Iterator[KirError]], ...] = (
        extents,
        bounds,
        promises,
        early_reads,
        coverage,
    )
    for rule in rules:
        for found in rule(model, report):
            yield found.at(kernel=kernel)


# --- the rules -----------------------------------------------------------------------------------


def extents(model: Model, report: Report) -> Iterator[KirError]:
    """Buffers and definitions have extents of at least 0; an output is defined whole."""
    outputs = {p.name: p for p in model.kernel.outputs}
    for decl in model.decls:
        if isinstance(decl.node, Buffer | Define):
            yield from _sizes(model, decl)
    for a in model.accesses:
        if not isinstance(a.node, Define) or a.node.name not in outputs:
            continue
        for k, (d, declared) in enumerate(
            zip(a.node.dims, outputs[a.node.name].shape, strict=True)
        ):
            example = differs(model, d.extent, declared, ()) if isinstance(d, Axis) else None
            if example is not None and isinstance(d, Axis):
                yield ShapeError(
                    f"dim {k} of `{a.node.name}` has extent `{_show(declared)}`, and is defined "
                    f"over `{d.name}: {_show(d.extent)}`{_given(example)}",
                    node=d,
                    hint="a definition of an output covers it exactly",
                )


def _sizes(model: Model, decl: Decl) -> Iterator[KirError]:
    what = "buffer" if isinstance(decl.node, Buffer) else "definition"
    for k, extent in enumerate(decl.shape):
        example = negative(model, extent, decl.frames)
        if example is not None:
            yield ShapeError(
                f"dim {k} of the {what} `{decl.name}` has extent `{_show(extent)}`, which may be "
                f"negative{_given(example)}",
                node=decl.node,
                hint=f"add the constraint `where {_show(extent)} >= 0` to the kernel",
            )


def bounds(model: Model, report: Report) -> Iterator[KirError]:
    """Every access lies within its tensor."""
    for a in model.accesses:
        found = escape(model, a)
        if found is None:
            continue
        if any(reads_data(i) for i in a.indices) and reads_data(a.indices[found.dim]):
            report.runtime_checked.append(a)
        else:
            yield _out_of_bounds(model, found)


def _out_of_bounds(model: Model, found: Escape) -> BoundsError:
    a, index = found.access, found.access.indices[found.dim]
    extent = found.access.decl.shape[found.dim]
    allowed = f"allowed is 0 <= {_show(index)} < {_show(extent)}"
    what = f"index {found.dim} of {describe(a)}"
    if not found.affine:
        return BoundsError(
            f"{what} is not shown to be in bounds: {allowed}", node=a.node, hint=SPECIALISE
        )
    mask = f"{_show(index)} < {_show(extent)}"
    if found.index is not None and found.index < 0:
        mask = f"{_show(index)} >= 0"
    takes = "takes" if found.certain else "may take"
    hint = f"add `where {mask}` to the loop"
    if a.kind == "read":
        hint += f", or read with a fill: `{_text(a)} else ...`"
    return BoundsError(
        f"{what} {takes} the value {found.index}, outside of its extent {found.extent}"
        f"{_given(found.values)}; {allowed}",
        node=a.node,
        hint=hint,
    )


def promises(model: Model, report: Report) -> Iterator[KirError]:
    """`grid` and `tile` carry no dependence, `tile` and `unroll` have constant extents."""
    for axis, _ in model.loops:
        loop = axis.loop
        assert loop is not None
        extent = model.prepare(axis.extent)
        if loop.kind in ("tile", "unroll") and not isinstance(extent, Const):
            yield PromiseError(
                f"the extent of `{loop.kind} {axis.name}` is `{_show(axis.extent)}`, which is not "
                "a constant",
                node=loop,
                hint=f"split it: `for {axis.name}o: cdiv({_show(axis.extent)}, 128)` around "
                f"`{loop.kind} {axis.name}: 128 where ...`",
            )
            continue
        if loop.kind not in ("grid", "tile"):
            continue
        found = parallel(model.kernel, axis)
        if found.conflict is None:
            continue
        kind = RaceError if loop.kind == "grid" else PromiseError
        promise = "independent" if loop.kind == "grid" else "free to run together"
        yield kind(
            f"the iterations of `{loop.kind} {axis.name}` are not {promise}: {found.conflict}",
            node=loop,
            hint=f"make it `for {axis.name}`, or give each iteration its own elements",
        )


def early_reads(model: Model, report: Report) -> Iterator[KirError]:
    """Outputs, buffers with no value and recurrences are read only where they were written."""
    for a in model.accesses:
        if a.decl.filled or a.kind == "write":
            continue
        try:
            gap = read_too_early(model, a)
        except Undecided:
            continue
        if gap is None:
            continue
        element = ", ".join(map(str, gap.element))
        hint = {
            "buffer": "write it first, or give the buffer a value: `buffer ... = 0.0`",
            "output": "write it first: an output has no value at the start",
        }.get(a.decl.role, "a recurrence reads earlier slices only: `t - 1`, with a fill")
        yield ScopeError(
            f"{describe(a)} comes before anything is written there: `{a.decl.name}[{element}]`"
            f"{_given(gap.values)}",
            node=a.node,
            hint=hint,
        )


def coverage(model: Model, report: Report) -> Iterator[KirError]:
    """Every element of every output is written."""
    for decl in model.decls:
        if decl.role != "output" or _defined_whole(model, decl):
            continue
        if any(model.prepare(e) == const(0) for e in decl.shape):
            continue  # it has no elements
        stores = [a for a in model.accesses if a.decl is decl and a.kind == "write"]
        if not stores:
            yield UnwrittenError(
                f"the output `{decl.name}` is never written",
                node=decl.node,
                hint=f"define it: `{decl.name}[...] = ...`; an update alone needs a first value",
            )
            continue
        try:
            gap, exact = unwritten(model, decl)
        except Undecided:
            gap, exact = None, False
            yield UnwrittenError(
                f"whether all of the output `{decl.name}` is written is too hard to decide",
                node=decl.node,
                hint=SPECIALISE,
            )
        if gap is None:
            continue
        element = ", ".join(map(str, gap.element))
        may = "is never written" if exact else "is not shown to be written"
        yield UnwrittenError(
            f"`{decl.name}[{element}]` {may}{_given(gap.values)}",
            node=decl.node,
            hint="let the stores cover all of it"
            if exact
            else "store a first value everywhere: a store under a condition on data, or at an "
            "index that is read or not affine, is not known to happen",
        )


def _defined_whole(model: Model, decl: Decl) -> bool:
    """Whether a plain definition at the top gives the output; `extents` compares its shape."""
    return any(
        a.decl is decl and isinstance(a.node, Define) and len(a.node.axes) == len(a.frames)
        for a in model.accesses
    )


# --- words ---------------------------------------------------------------------------------------


def _show(e: Expr) -> str:
    from kir.syntax import format_expr  # late, so that the syntax may one day use the checker

    return format_expr(e)


def _text(a: Access) -> str:
    return describe(a).split("`")[1]


def _given(values: Mapping[str, int]) -> str:
    """An example in words: " (e.g. N = 4, i = 3)"."""
    if not values:
        return ""
    return " (e.g. " + ", ".join(f"{n} = {v}" for n, v in values.items()) + ")"


__all__ = ["Report", "check_kernel", "check_module", "find_errors", "validate"]
