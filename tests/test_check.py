"""The checker: every rule refuses what breaks it, and lets pass what keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kir.check import Report, check_kernel, check_module, find_errors, validate
from kir.dtypes import f32, f64
from kir.errors import (
    BoundsError,
    DTypeError,
    DuplicateNameError,
    KirError,
    PromiseError,
    RaceError,
    ScopeError,
    ShapeError,
    UnknownNameError,
    UnwrittenError,
)
from kir.ir import (
    Axis,
    Cast,
    Const,
    Define,
    Kernel,
    Loop,
    Op,
    Param,
    Read,
    Reduce,
    Store,
    Var,
    const,
    transform,
    walk,
)
from kir.ops import op
from kir.specialise import specialise
from kir.syntax import format_kernel, parse, parse_kernel

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").rglob("*.kir"))


def errors(text: str) -> list[KirError]:
    return list(find_errors(parse_kernel(text), Report()))


def vector(body: str, signature: str = "[N](x: f32[N]) -> (y: f32[N])") -> str:
    return f"kernel k{signature} {{ {body} }}"


TILED = "grid io: cdiv(N, 128) {{ tile i: 128 {where} {{ y[{y}] = x[{x}] }} }}"
AT = "io*128 + i"
MASK = f"where {AT} < N"
MATMUL = """
kernel mm[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
  grid io: cdiv(M, 128), jo: cdiv(N, 128) {
    buffer acc: f32[128, 128] in reg = 0.0
    for ko: cdiv(K, 64) {
      tile i: 128, j: 128, k: 64 where io*128+i < M, jo*128+j < N, ko*64+k < K {
        acc[i, j] += a[io*128+i, ko*64+k] * b[ko*64+k, jo*128+j]
      }
    }
    tile i2: 128, j2: 128 where io*128+i2 < M, jo*128+j2 < N {
      c[io*128+i2, jo*128+j2] = acc[i2, j2]
    }
  }
}
"""
ROWS = """
kernel softmax[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  grid i: M {
    buffer m: f32 in reg = -inf
    for jo: cdiv(N, 1024) {
      tile j: 1024 where jo*1024 + j < N { m max= x[i, jo*1024 + j] }
    }
    buffer s: f32 in reg = 0.0
    for jo2: cdiv(N, 1024) {
      tile j2: 1024 where jo2*1024 + j2 < N { s += exp(x[i, jo2*1024 + j2] - m) }
    }
    for jo3: cdiv(N, 1024) {
      tile j3: 1024 where jo3*1024 + j3 < N {
        y[i, jo3*1024 + j3] = exp(x[i, jo3*1024 + j3] - m) / s
      }
    }
  }
}
"""
STAGED = """
kernel scale[N](x: f32[N]) -> (y: f32[N]) {
  grid io: cdiv(N, 256) {
    buffer xs: f32[256] in local
    for p: 256 where io*256 + p < N { xs[p] = x[io*256 + p] }
    tile i: 256 where io*256 + i < N { y[io*256 + i] = xs[i] * 2.0 }
  }
}
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=[p.stem for p in EXAMPLES])
def test_examples_are_clean(path: Path) -> None:
    assert check_module(parse(path.read_text(), str(path))) == []


@pytest.mark.parametrize(
    "text",
    [
        MATMUL,
        ROWS,
        STAGED,
        vector(TILED.format(where=MASK, x=AT, y=AT)),
        "kernel k[N](x: f32[N]) -> (y: f32[N]) where N % 128 == 0 "
        "{ grid io: N // 128 { tile i: 128 { y[io*128 + i] = x[io*128 + i] } } }",
        vector("for t: N { y[t] = x[t] + (y[t - 1] else 0.0) }"),
        vector("y[i: N] = sum(j: i) x[j + 1]"),
        vector("for i: N { if i >= 1 { y[i] = x[i - 1] } if i < 1 { y[i] = 0.0 } }"),
        vector("grid i: N { y[N - 1 - i] = x[i] }"),
        vector("grid i: N { y[i] = 0.0 } grid j: N { y[j % 4 + N // 4 - N // 4] += 0.0 }",
               "[N](x: f32[N]) -> (y: f32[N]) where N >= 4"),
        "kernel k[M, N](x: f32[M*N]) -> (y: f32[M, N]) { y[i: M, j: N] = x[i*N + j] }",
        "kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) "
        "{ grid i: M { y[i] = 0.0 } grid i: M, j: N { y[i] += x[i, j] } }",
    ],
)  # fmt: skip
def test_good_kernels_are_clean(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        # out of bounds
        (vector("y[i: N] = x[i + 1]"), BoundsError, "takes the value 1, outside of its extent 1"),
        (vector("y[i: N] = x[i - 1]"), BoundsError, "takes the value -1"),
        (vector(TILED.format(where="", x=AT, y=AT)), BoundsError, "the read `x[io * 128 + i]`"),
        (vector(TILED.format(where=f"where {AT} <= N", x=AT, y=AT)), BoundsError, "outside of its"),
        (MATMUL.replace("jo*128+j < N, ko", "ko"), BoundsError, "b[ko * 64 + k, jo * 128 + j]"),
        (MATMUL.replace("where io*128+i2 < M, ", "where "), BoundsError, "the write `c["),
        (ROWS.replace("where jo3*1024 + j3 < N ", ""), BoundsError, "jo3 * 1024 + j3"),
        (STAGED.replace("xs: f32[256]", "xs: f32[255]"), BoundsError, "xs"),
        (vector("y[i: N] = select(i >= 1, x[i - 1], 0.0)"), BoundsError, "x[i - 1]"),
        (vector("for i: N { y[i] = 0.0 } for i: N { if x[i] > 0.0 { y[i + 1] = 0.0 } }"),
         BoundsError, "may take the value"),
        ("kernel k[M, N](x: f32[M*N]) -> (y: f32[M, N]) { y[i: M, j: N] = x[i*M + j] }",
         BoundsError, "not shown"),
        # races and promises
        (vector("y[i: N] = x[i]", "[N](x: f32[N]) -> (y: f32[N], z: f32[N])")[:-1]
         + "z[i: N] = x[i] grid j: N where j >= 1 { z[j] = z[j - 1] } }",
         RaceError, "the read `z[j - 1]` and the write `z[j]`"),
        (vector(TILED.format(where=f"where io*127 + i < N, {AT} < N", x="io*127 + i",
                             y="io*127 + i")), RaceError, "`io` = 0 and `io` = 1"),
        (MATMUL.replace("for ko", "grid ko").replace("acc[i, j] +=", "acc[i, j] ="),
         RaceError, "grid ko"),
        (MATMUL.replace("j2] }", "j2] }").replace("c[io*128+i2,", "c[i2,").replace(
            "where io*128+i2 < M, jo*128+j2", "where i2 < M, jo*128+j2"),
         RaceError, "grid io"),
        (vector("grid i: N { y[i] = 0.0 } grid j: N { y[0] += x[j] y[0] *= 2.0 }",
                "[N](x: f32[N]) -> (y: f32[N]) where N >= 1"), RaceError, "one element of `y`"),
        (vector("tile i: 8 { y[i] = x[i] } tile i: 8 where i >= 1 { y[i] = y[i - 1] }",
                "(x: f32[8]) -> (y: f32[8])"), PromiseError, "not free to run together"),
        (ROWS.replace("x[i, jo*1024 + j] }", "x[i, jo*1024 + j] t = m }")
             .replace("buffer m", "buffer t: f32 in reg = 0.0 buffer m"), PromiseError, "tile j"),
        (vector("tile i: N { y[i] = x[i] }"), PromiseError, "not a constant"),
        (vector("unroll i: N { y[i] = x[i] }"), PromiseError, "not a constant"),
        # coverage
        (vector(""), UnwrittenError, "never written"),
        (vector("for i: N // 2 { y[2*i] = x[2*i] }"), UnwrittenError, "`y[0]` is never written"),
        (vector("grid io: N // 128 { tile i: 128 { y[io*128 + i] = x[io*128 + i] } }"),
         UnwrittenError, "never written"),
        (MATMUL.replace("tile i2: 128, j2: 128", "tile i2: 128, j2: 127"), UnwrittenError, "127"),
        (ROWS.replace("where jo3*1024 + j3 < N", "where jo3*1024 + j3 < N - 1"),
         UnwrittenError, "is never written"),
        (vector("for i: N { if x[i] > 0.0 { y[i] = 1.0 } }"), UnwrittenError, "not shown"),
        (vector("grid i: N { y[ids[i]] += x[i] }", "[N](x: f32[N], ids: i64[N]) -> (y: f32[N])"),
         UnwrittenError, "never written"),
        # read too early
        (vector("buffer t: f32[N] in global for i: N { y[i] = t[i] } for j: N { t[j] = x[j] }"),
         ScopeError, "comes before"),
        (STAGED.replace("io*256 + p < N", "io*256 + p < N - 1"), ScopeError, "xs["),
        (vector("for t: N { y[t] = x[t] + (y[t + 1] else 0.0) }"), ScopeError, "y[t + 1]"),
        (vector("for t: N { h[t, i: 4] = x[t] + (h[t, i] else f32(0.0)) y[t] = h[t, 0] }"),
         ScopeError, "h[t, i]"),
        # shapes
        (vector("y[i: N] = x[i]", "[M, N](x: f32[N]) -> (y: f32[M])"), ShapeError, "extent `M`"),
        ("kernel k[N](x: f32[N]) -> (y: f32) { e[i: N - 1] = x[i]  y = sum(i: N - 1) e[i] }",
         ShapeError, "may be negative"),
    ],
)  # fmt: skip
def test_faults_are_refused(text: str, kind: type[KirError], words: str) -> None:
    found = errors(text)
    messages = [(type(e), e.message) for e in found]
    assert any(t is kind and words in message for t, message in messages), messages
    for e in found:
        assert e.hint and e.kernel is not None and e.node is not None
        assert "^" in e.render()


SCHEDULED = {p.stem: p for p in EXAMPLES if p.parent.name == "scheduled"}


def masks(module_text: str) -> list[tuple[Kernel, Loop, int]]:
    return [
        (k, n, i)
        for k in parse(module_text).kernels().values()
        for n in walk(k)
        if isinstance(n, Loop)
        for i in range(len(n.where))
    ]


@pytest.mark.parametrize(
    "text",
    [MATMUL, ROWS, STAGED, *(p.read_text() for p in SCHEDULED.values())],
    ids=["matmul", "rows", "staged", *SCHEDULED],
)
def test_every_mask_is_needed(text: str) -> None:
    """A scheduled kernel without any one of its masks is refused."""
    for k, loop, i in masks(text):
        bare = replace(loop, where=loop.where[:i] + loop.where[i + 1 :])
        without = transform(k, lambda n, old=loop, new=bare: new if n is old else None)
        assert find_errors_of(without), format_kernel(without)


def find_errors_of(k: Kernel) -> list[KirError]:
    return list(find_errors(k, Report()))


def test_a_question_that_is_too_hard_is_refused_soon() -> None:
    index = [f"(a*{p} + b*{p + 2} + c*{p + 6} + d*{p + 12}) % 1009" for p in (17, 37)]
    mask = "(a*7 + b*11 + c)%13 != (d*5 + a)%17, (a + b)//3 < (c*3 + d)//5 + a"
    text = f"""
    kernel k[N, M](x: f32[N]) -> (y: f32[1009, 1013]) {{
      grid a: N, b: M {{ grid c: 37, d: 41 where {mask} {{ y[{index[0]}, {index[1]}] = 0.0 }} }}
    }}"""
    assert {type(e) for e in errors(text)} >= {RaceError, UnwrittenError}


def test_shapes_of_graph_calls() -> None:
    text = """
    kernel twice[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] + x[i] }
    graph g[A, B](x: f32[A]) -> (y: f32[%s]) { t = twice(x)  y = twice(t) }
    """
    assert check_module(parse(text % "A")) == []
    assert [type(e) for e in check_module(parse(text % "B"))] == [ShapeError]


def test_an_example_of_a_fault_is_a_real_one() -> None:
    """The dims and indices named in a message do leave the tensor."""
    [error] = errors(vector("y[i: N] = x[i*2 - 3] + 0.0", "[N](x: f32[N]) -> (y: f32[N])"))
    assert "takes the value -3" in error.message and "i = 0" in error.message


def test_indices_read_from_tensors_are_left_to_run_time() -> None:
    kernel = parse_kernel(
        "kernel k[V, T](x: f32[V], ids: i64[T]) -> (y: f32[T], z: f32[T]) "
        "where V >= 16 { y[t: T] = x[ids[t]]  z[t: T] = x[ids[t] % 16] }"
    )
    report = check_kernel(kernel)
    assert [a.indices for a in report.runtime_checked] == [
        (Read("ids", (Var("t"),), Var("t").dtype),)
    ]


def test_what_is_not_affine_passes_once_specialised() -> None:
    body = "for i: M { for j: N { y[i*N + j] = x[i, j] } }"
    text = f"kernel k[M, N](x: f32[M, N]) -> (y: f32[M*N]) {{ {body} }}"
    kernel = parse_kernel(text)
    with pytest.raises(UnwrittenError):
        check_kernel(kernel)
    check_kernel(specialise(kernel, {"N": 7}))


def test_parameters_have_their_defaults() -> None:
    text = "kernel k[N, s = {s}](x: f32[2*N]) -> (y: f32[N]) {{ y[i: N] = x[s*i + 1] }}"
    assert errors(text.format(s=2)) == []
    assert [type(e) for e in errors(text.format(s=3))] == [BoundsError]


def test_the_first_error_is_raised_with_its_kernel() -> None:
    kernel = parse_kernel(vector("y[i: N] = x[i + 1]"))
    with pytest.raises(BoundsError) as caught:
        check_kernel(kernel)
    assert caught.value.kernel is kernel
    assert isinstance(caught.value.node, Read)


def test_names_that_isl_knows_are_names_like_others() -> None:
    text = "kernel k[domain, exists](rat: f32[domain, exists]) -> (y: f32[domain, exists]) {{ {} }}"
    assert errors(text.format("y[not0: domain, NaN: exists] = rat[not0, NaN]")) == []
    assert errors(text.format("y[infty: domain, _: exists] = rat[_, infty]")) != []


# --- validate ------------------------------------------------------------------------------------

X, Y = Param("x", f32, (Var("N"),)), Param("y", f32, (Var("N"),))
READ = Read("x", (Var("i"),), f32)


def kernel(*body: object, outputs: tuple[Param, ...] = (Y,)) -> Kernel:
    base = parse_kernel(vector("y[i: N] = x[i]"))
    return replace(base, body=body, outputs=outputs)


def over(*body: object, name: str = "i", where: tuple[object, ...] = ()) -> Loop:
    return Loop("for", Axis(name, Var("N")), where, body)  # type: ignore[arg-type]


def test_a_valid_kernel_made_by_hand() -> None:
    validate(kernel(over(Store("y", (Var("i"),), READ))))
    for path in EXAMPLES:
        for k in parse(path.read_text(), str(path)).kernels().values():
            validate(k)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (over(Store("y", (Var("j"),), READ)), UnknownNameError),
        (over(Store("y", (Var("i"),), Read("z", (), f32))), UnknownNameError),
        (over(over(Store("y", (Var("i"),), READ))), DuplicateNameError),
        (over(Store("y", (Var("i"),), READ), name="N"), DuplicateNameError),
        (over(Store("y", (Var("i"),), READ), name="x"), DuplicateNameError),
        (over(Store("x", (Var("i"),), READ)), ScopeError),
        (over(Store("y", (Var("i"), Var("i")), READ)), ShapeError),
        (over(Store("y", (Var("i"),), Cast(READ, f64))), DTypeError),
        (over(Store("y", (Var("i"),), Read("x", (Var("i"),), f64))), DTypeError),
        (over(Store("y", (Var("i"),), Op("add", (READ, READ), f64))), DTypeError),
        (over(Store("y", (Var("i"),), Op("frob", (READ,), f32))), UnknownNameError),
        (over(Store("y", (Var("i"),), READ, "and")), DTypeError),
        (over(Store("y", (Var("i"),), READ, "sub")), UnknownNameError),
        (over(Store("y", (Var("i"),), READ), where=(const(1),)), DTypeError),
        (over(Store("y", (Var("i"),), Const(1, f32))), DTypeError),
        (Define("y", (Axis("i", Var("N")), Axis("j", Var("N"))), READ), ShapeError),
        (Define("y", (Axis("i", Var("N")),), Cast(READ, f64)), ShapeError),
        (Define("x", (Axis("i", Var("N")),), READ), DuplicateNameError),
        (Define("y", (Var("t"),), Const(0.0, f32)), ScopeError),
        (Define("y", (Axis("i", Var("N")),), Reduce("sum", (Axis("i", Var("N")),), (), READ)),
         DuplicateNameError),
        (Define("y", (Axis("i", Var("N")),), Reduce("all", (Axis("j", Var("N")),), (), READ)),
         DTypeError),
        (Define("y", (Axis("i", Var("N")),), Reduce("mean", (Axis("j", Var("N")),), (), READ)),
         UnknownNameError),
    ],
)  # fmt: skip
def test_malformed_kernels_are_refused(body: object, kind: type[KirError]) -> None:
    k = kernel(body)
    with pytest.raises(kind) as caught:
        validate(k)
    assert caught.value.kernel is k
    assert [type(e) for e in find_errors(k, Report())] == [kind]


def test_outputs_are_unique() -> None:
    with pytest.raises(DuplicateNameError):
        validate(kernel(outputs=(Y, Y)))
    assert op("add", READ, READ).type == f32
    assert X.type == f32
