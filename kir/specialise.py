"""Dims to constants: unify declared shapes with actual ones, check constraints, substitute, fold.

    infer_dims(kernel, {"x": (3, 4)}) -> {"M": 3, "N": 4}      reads the dims off the inputs
    specialise(kernel, {"M": 3})      -> the kernel with M = 3 and every parameter constant

A dim left symbolic stays among the kernel's dims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kir.errors import ConstraintError, InputDataError
from kir.ir import Cast, Const, Expr, Graph, Kernel, Op, Param, Var, const, substitute, walk
from kir.ops import compute
from kir.simplify import simplify

Program = Kernel | Graph


def evaluate(expr: Expr, values: Mapping[str, int]) -> int | float | bool:
    """The value of an expression over dims; KeyError on a Var that `values` lacks."""
    result: int | float | bool = _evaluate(expr, values).item()
    return result


def _evaluate(expr: Expr, values: Mapping[str, int]) -> np.ndarray[Any, Any]:
    if isinstance(expr, Const):
        return np.asarray(expr.value, expr.type.numpy)
    if isinstance(expr, Var):
        return np.asarray(values[expr.name], np.int64)
    if isinstance(expr, Cast):
        return _evaluate(expr.value, values).astype(expr.type.numpy)
    if isinstance(expr, Op):
        args = [_evaluate(a, values) for a in expr.args]
        return np.asarray(compute(expr.name, args, expr.type))
    raise ConstraintError("a shape or constraint is made of dims and constants alone", node=expr)


def free_dims(expr: Expr) -> set[str]:
    """The names of the dims that an expression over dims reads."""
    return {n.name for n in walk(expr) if isinstance(n, Var)}


def bind_defaults(kernel: Program, dims: Mapping[str, int] | None = None) -> dict[str, int]:
    """`dims` completed by the parameters' defaults; ConstraintError on unknown or negative ones."""
    declared = {d.name: d for d in kernel.dims}
    values = {d.name: d.default for d in kernel.dims if d.default is not None}
    for name, value in (dims or {}).items():
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise ConstraintError(
                f"`{kernel.name}` has no dim `{name}`", hint=f"its dims are: {known}", kernel=kernel
            )
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ConstraintError(
                f"dim `{name}` is {value!r}, not an integer", hint="dims are ints", kernel=kernel
            )
        if declared[name].default is None and value < 0:
            raise ConstraintError(
                f"dim `{name}` is {value}, less than 0", hint="a dim is at least 0", kernel=kernel
            )
        values[name] = int(value)
    return values


def infer_dims(
    kernel: Program,
    shapes: Mapping[str, tuple[int, ...]],
    dims: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Every dim's value, from the shapes of tensors by name, from `dims` and from defaults.

    Raises InputDataError where a shape contradicts what is declared, ConstraintError where a dim
    stays unknown, is negative, or breaks a `where`.
    """
    values = bind_defaults(kernel, dims)
    origin = dict.fromkeys(values, "the dims given")
    pending = list(_equations(kernel, shapes))
    progress = True
    while progress:
        progress = False
        for equation in list(pending):
            param, axis, expr, actual = equation
            unknown = free_dims(expr) - values.keys()
            if not unknown:
                _check_equal(kernel, param, axis, expr, actual, values, origin)
            elif len(unknown) == 1:
                name = unknown.pop()
                solved = _solve(expr, name, actual, values)
                if solved is None:
                    continue
                if solved < 0:
                    raise InputDataError(
                        f"`{param.name}` is {actual} long on axis {axis}, which would make the "
                        f"dim `{name}` {solved}",
                        kernel=kernel,
                        node=param,
                    )
                values[name] = solved
                origin[name] = f"`{param.name}`"
            else:
                continue
            pending.remove(equation)
            progress = True
    _require_all(kernel, values)
    check_constraints(kernel, values)
    return values


def _equations(
    kernel: Program, shapes: Mapping[str, tuple[int, ...]]
) -> Iterable[tuple[Param, int, Expr, int]]:
    for param in kernel.params:
        if param.name not in shapes:
            continue
        actual = tuple(shapes[param.name])
        if len(actual) != len(param.shape):
            raise InputDataError(
                f"`{param.name}` has {len(actual)} axes, but {len(param.shape)} are declared",
                kernel=kernel,
                node=param,
            )
        for axis, (expr, n) in enumerate(zip(param.shape, actual, strict=True)):
            yield param, axis, expr, n


def _check_equal(
    kernel: Program,
    param: Param,
    axis: int,
    expr: Expr,
    actual: int,
    values: Mapping[str, int],
    origin: Mapping[str, str],
) -> None:
    wanted = evaluate(expr, values)
    if wanted == actual:
        return
    if isinstance(expr, Var):
        message = (
            f"`{expr.name}` is {wanted} in {origin.get(expr.name, 'the dims given')} "
            f"but {actual} in `{param.name}`"
        )
    else:
        known = ", ".join(f"{n} = {values[n]}" for n in sorted(free_dims(expr)))
        message = (
            f"axis {axis} of `{param.name}` is {actual} long, but its declared extent is "
            f"{wanted}" + (f" where {known}" if known else "")
        )
    raise InputDataError(message, kernel=kernel, node=param)


def _solve(expr: Expr, name: str, actual: int, values: Mapping[str, int]) -> int | None:
    """The one dim `name` for which `expr` is `actual`, where `expr` is affine in it."""
    if isinstance(expr, Var):
        return actual

    def at(n: int) -> int:
        return int(evaluate(expr, {**values, name: n}))

    start, slope = at(0), at(1) - at(0)
    affine = (
        at(2) - at(1) == slope and at(7) - at(0) == 7 * slope and at(1000) == start + 1000 * slope
    )
    if not slope or not affine or (actual - start) % slope:
        return None
    found = (actual - start) // slope
    return found if at(found) == actual else None


def _require_all(kernel: Program, values: Mapping[str, int]) -> None:
    missing = [d.name for d in kernel.dims if d.name not in values]
    if missing:
        names = ", ".join(f"`{n}`" for n in missing)
        raise ConstraintError(
            f"no value for the dim{'s' * (len(missing) > 1)} {names} of `{kernel.name}`",
            hint=f"no input's shape determines {'them' if len(missing) > 1 else 'it'}: "
            f"give {', '.join(f'{n}=...' for n in missing)}",
            kernel=kernel,
        )


def check_constraints(kernel: Program, values: Mapping[str, int]) -> None:
    """ConstraintError unless every constraint whose dims are all known holds, shapes >= 0 too."""
    for constraint in kernel.constraints:
        names = free_dims(constraint)
        if names <= values.keys() and not evaluate(constraint, values):
            known = ", ".join(f"{n} = {values[n]}" for n in sorted(names))
            raise ConstraintError(
                f"a constraint of `{kernel.name}` does not hold where {known}",
                node=constraint,
                kernel=kernel,
                hint="choose dims for which it holds",
            )
    for param in kernel.params:
        for axis, extent in enumerate(param.shape):
            names = free_dims(extent)
            if names <= values.keys() and (n := evaluate(extent, values)) < 0:
                known = ", ".join(f"{n} = {values[n]}" for n in sorted(names))
                raise ConstraintError(
                    f"axis {axis} of `{param.name}` would be {n} long where {known}",
                    node=param,
                    kernel=kernel,
                    hint="choose dims that make every extent at least 0",
                )


def specialise(kernel: Kernel, dims: Mapping[str, int] | None = None) -> Kernel:
    """`kernel` with constants for `dims` and for every parameter, folded.

    Raises ConstraintError where a value breaks a constraint. What stays symbolic keeps its dim
    and the constraints on it.
    """
    values = bind_defaults(kernel, dims)
    check_constraints(kernel, values)
    if not values:
        return kernel
    constants: dict[str, Expr] = {name: const(value) for name, value in values.items()}
    kept = tuple(c for c in kernel.constraints if not free_dims(c) <= values.keys())
    found = simplify(substitute(replace(kernel, dims=(), constraints=kept), constants))
    return replace(found, dims=tuple(d for d in kernel.dims if d.name not in values))


def param_shapes(
    kernel: Program, params: Iterable[Param], dims: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shapes of `params` under `dims`, which must be complete."""
    _require_all(kernel, dims)
    return {p.name: tuple(int(evaluate(e, dims)) for e in p.shape) for p in params}


def input_shapes(kernel: Program, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes; `dims` is completed by defaults and checked."""
    values = bind_defaults(kernel, dims)
    check_constraints(kernel, values)
    return param_shapes(kernel, kernel.inputs, values)


def output_shapes(kernel: Program, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The outputs' shapes; `dims` is completed by defaults and checked."""
    values = bind_defaults(kernel, dims)
    check_constraints(kernel, values)
    return param_shapes(kernel, kernel.outputs, values)
