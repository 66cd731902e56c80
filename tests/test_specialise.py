"""Dims: unification with actual shapes, constraints, substitution."""

from __future__ import annotations

import pytest

from kir.dtypes import bool_, f32, i64
from kir.errors import ConstraintError, InputDataError
from kir.ir import Axis, Const, Define, Dim, Expr, Kernel, Param, Read, Reduce, Var, const, walk
from kir.ops import op
from kir.specialise import (
    bind_defaults,
    evaluate,
    infer_dims,
    input_shapes,
    output_shapes,
    specialise,
)

M, N, K, P = Var("M"), Var("N"), Var("K"), Var("P")


def matmul(*constraints: Expr) -> Kernel:
    i, j, k = Var("i"), Var("j"), Var("k")
    body = op("mul", Read("x", (i, k), f32), Read("w", (k, j), f32))
    return Kernel(
        "matmul",
        (Dim("M"), Dim("N"), Dim("K")),
        (Param("x", f32, (M, K)), Param("w", f32, (K, N))),
        (Param("y", f32, (M, N)),),
        constraints,
        (Define("y", (Axis("i", M), Axis("j", N)), Reduce("sum", (Axis("k", K),), (), body)),),
    )


def pooled() -> Kernel:
    """y has (N + 2*P - 3)//stride + 1 elements."""
    total = op("sub", op("add", N, op("mul", const(2), P)), const(3))
    extent = op("add", op("floordiv", total, Var("stride")), const(1))
    value = Read("x", (op("mul", Var("i"), Var("stride")),), f32, Const(0.0, f32))
    return Kernel(
        "pooled",
        (Dim("N"), Dim("stride", 1), Dim("P", 0)),
        (Param("x", f32, (N,)),),
        (Param("y", f32, (extent,)),),
        (op("gt", Var("stride"), const(0)),),
        (Define("y", (Axis("i", extent),), value),),
    )


def test_dims_come_from_shapes() -> None:
    assert infer_dims(matmul(), {"x": (3, 4), "w": (4, 5)}) == {"M": 3, "N": 5, "K": 4}


def test_clash_names_both_tensors() -> None:
    with pytest.raises(InputDataError) as e:
        infer_dims(matmul(), {"x": (3, 4), "w": (5, 5)})
    assert e.value.message == "`K` is 4 in `x` but 5 in `w`"


def test_clash_with_given_dims() -> None:
    with pytest.raises(InputDataError, match="`M` is 2 in the dims given but 3 in `x`"):
        infer_dims(matmul(), {"x": (3, 4), "w": (4, 5)}, {"M": 2})


def test_rank_and_missing_and_negative_and_unknown() -> None:
    with pytest.raises(InputDataError, match="has 1 axes, but 2 are declared"):
        infer_dims(matmul(), {"x": (3,), "w": (4, 5)})
    with pytest.raises(ConstraintError, match="no value for the dim `N`"):
        infer_dims(matmul(), {"x": (3, 4)})
    with pytest.raises(ConstraintError, match="dim `M` is -1, less than 0"):
        bind_defaults(matmul(), {"M": -1})
    with pytest.raises(ConstraintError, match="has no dim `Q`"):
        bind_defaults(matmul(), {"Q": 1})
    with pytest.raises(ConstraintError, match="not an integer"):
        bind_defaults(matmul(), {"M": 1.5})  # type: ignore[dict-item]


def test_constraint_shows_values() -> None:
    kernel = matmul(op("eq", op("mod", N, const(16)), const(0)))
    assert infer_dims(kernel, {"x": (3, 4), "w": (4, 32)})["N"] == 32
    with pytest.raises(ConstraintError, match="does not hold where N = 5"):
        infer_dims(kernel, {"x": (3, 4), "w": (4, 5)})


def test_affine_extent_is_solved() -> None:
    doubled = op("add", op("mul", const(2), N), const(1))
    kernel = Kernel(
        "odd", (Dim("N"),), (Param("x", f32, (doubled,)),), (Param("y", f32, (N,)),), (), ()
    )
    assert infer_dims(kernel, {"x": (9,)}) == {"N": 4}
    with pytest.raises(ConstraintError, match="no value for the dim `N`"):
        infer_dims(kernel, {"x": (8,)})


def test_parameters_default_and_output_shape() -> None:
    assert output_shapes(pooled(), {"N": 8}) == {"y": (6,)}
    assert output_shapes(pooled(), {"N": 8, "stride": 2, "P": 1}) == {"y": (4,)}
    assert input_shapes(pooled(), {"N": 8}) == {"x": (8,)}
    with pytest.raises(ConstraintError, match="would be -1 long where N = 1, P = 0, stride = 1"):
        output_shapes(pooled(), {"N": 1})
    with pytest.raises(ConstraintError, match="does not hold where stride = 0"):
        output_shapes(pooled(), {"N": 8, "stride": 0})


def test_specialise_leaves_no_trace_of_what_is_bound() -> None:
    special = specialise(matmul(), {"M": 3, "K": 4})
    assert [d.name for d in special.dims] == ["N"]
    assert special.inputs[0].shape == (const(3), const(4))
    assert not any(isinstance(n, Var) and n.name in ("M", "K") for n in walk(special))
    assert special.body[0] == Define(
        "y",
        (Axis("i", const(3)), Axis("j", N)),
        Reduce("sum", (Axis("k", const(4)),), (), matmul().body[0].value.body),  # type: ignore
    )


def test_specialise_keeps_constraints_on_symbolic_dims() -> None:
    kept = op("eq", op("mod", N, const(16)), const(0))
    assert specialise(matmul(kept), {"M": 1}).constraints == (kept,)
    assert specialise(matmul(kept), {"N": 16}).constraints == ()
    with pytest.raises(ConstraintError):
        specialise(matmul(kept), {"N": 15})


def test_evaluate_follows_the_op_table() -> None:
    assert evaluate(op("floordiv", const(-7), const(2)), {}) == -4
    assert evaluate(op("cdiv", N, const(4)), {"N": 9}) == 3
    assert evaluate(op("lt", N, const(4)), {"N": 9}) is False
    assert Const(True, bool_) and i64.kind == "int"
