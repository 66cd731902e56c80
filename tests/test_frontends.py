# mypy: disable-error-code="no-untyped-def"
"""Index notation in Python and einsum: the text's IR, the language's errors, and values."""

from __future__ import annotations

import re
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kir
from kir.errors import DTypeError, UsageError
from kir.frontends import bf16, einsum, f32, i64, kernel, u32
from kir.interpret import run
from kir.syntax import parse_kernel

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "frontends.md").read_text(), re.S)

# --- index notation ------------------------------------------------------------------------------


def test_softmax_is_the_example():
    @kernel("[M, N](x: f32[M, N]) -> (y: f32[M, N])")
    def softmax(k, M, N, x, y):
        i, j = k.indices("i", "j")
        k.m[i:M] = k.max[j:N](x[i, j])
        k.e[i:M, j:N] = k.exp(x[i, j] - k.m[i])
        k.s[i:M] = k.sum[j:N](k.e[i, j])
        y[i:M, j:N] = k.e[i, j] / k.s[i]

    assert softmax == parse_kernel((ROOT / "examples" / "softmax.kir").read_text())


def test_parameters_conditions_and_fills():
    @kernel("[N, size = 3](x: f32[N], s: f32) -> (y: f32[N // size], n: i64[N // size])")
    def pool(k, N, size, x, s):
        p, r = k.indices("p", "r")
        inside = (r > 0) & ~(r == 2) | (r >= 5)
        k.y[p : N // size] = k.max[r:size](x[p * size + r].otherwise(-1.5) * s, where=inside)
        k.n[p : N // size] = k.argmax[r:size](-x[p * size + r])

    assert pool == parse_kernel(
        """kernel pool[N, size = 3](x: f32[N], s: f32) -> (y: f32[N // size], n: i64[N // size]) {
             y[p: N // size] = max(r: size where r > 0 and not r == 2 or r >= 5)
               (x[p * size + r] else -1.5) * s
             n[p: N // size] = argmax(r: size) -x[p * size + r]
           }"""
    )


def test_loops_buffers_and_updates():
    @kernel("[M, N](x: bf16[M, N]) -> (y: f32[M], z: f32)")
    def total(k, M, N, x, y):
        with k.loop(kind="grid", i=M) as i:
            acc = k.buffer("acc", f32[4], "reg", init=0.0)
            with k.loop(j_o=N // 4, j=4, where=i >= 0) as (j_o, j):
                acc[j] += f32(x[i, j_o * 4 + j])
                acc[j] = acc[j].max(2.0)
            with k.when(i < M):
                y[i] = acc[0] * 2
        k.z = k.bitcast(f32, u32(7)) + 1

    assert total == parse_kernel(
        """kernel total[M, N](x: bf16[M, N]) -> (y: f32[M], z: f32) {
             grid i: M {
               buffer acc: f32[4] in reg = 0.0
               for j_o: N // 4, j: 4 where i >= 0 {
                 acc[j] += f32(x[i, j_o * 4 + j])
                 acc[j] max= 2.0
               }
               if i < M { y[i] = acc[0] * 2 }
             }
             z = bitcast[f32](u32(7)) + 1
           }"""
    )


def test_python_repeats_statements_while_it_writes():
    @kernel("[N](x: f32[N]) -> (y: f32[N])")
    def power(k, N, x, y):
        (i,) = k.indices("i")
        value = x[i] * 1
        for _ in range(3):
            value *= x[i]
        y[i:N] = value

    text = "kernel power[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * 1 * x[i] * x[i] * x[i] }"
    assert power == parse_kernel(text)


def test_what_it_gives_compiles_and_runs():
    @kernel("[N](x: f32[N], n: i32) -> (y: f32[N])")
    def scaled(k, N, x, n, y):
        (i,) = k.indices("i")
        y[i:N] = k.select(x[i] > 0, x[i], 0.1 * x[i]) * f32(n)

    x = np.linspace(-2, 2, 37, dtype=np.float32)
    got = kir.compile(scaled)(x, np.array(3, np.int32))
    assert np.allclose(got, np.where(x > 0, x, 0.1 * x) * 3)


def test_an_error_names_the_line_of_python():
    with pytest.raises(DTypeError) as caught:

        @kernel("[N](x: f32[N], w: bf16[N]) -> (y: f32[N])")
        def scale(k, N, x, w, y):
            (i,) = k.indices("i")
            y[i:N] = x[i] * w[i]

    shown = caught.value.render()
    assert re.search(r"# test_frontends\.py:\d+", shown), shown
    assert "scale of test_frontends.py" in shown


def test_what_python_cannot_say_is_refused():
    head = kernel("[N](x: f32[N]) -> (y: f32[N])")
    with pytest.raises(UsageError, match="no value while"):

        @head
        def branch(k, N, x, y):
            (i,) = k.indices("i")
            y[i:N] = x[i] if x[i] > 0 else 0.0

    with pytest.raises(UsageError, match="iterated"):

        @head
        def loop(k, N, x, y):
            for i in N:
                y[i] = x[i]

    with pytest.raises(UsageError, match="no place in a kernel"):

        @head
        def array(k, N, x, y):
            (i,) = k.indices("i")
            y[i:N] = x[i] + np.ones(3)

    with pytest.raises(UsageError, match="an index and its extent"):

        @head
        def bounds(k, N, y):
            y[0:N] = 1.0

    with pytest.raises(UsageError, match="no kind of loop"):

        @head
        def kinds(k, N, x, y):
            with k.loop(kind="while", i=N) as i:
                y[i] = x[i]


def test_names_cannot_smuggle_text():
    with pytest.raises(UsageError, match="no name"):

        @kernel("[N](x: f32[N]) -> (y: f32[N])")
        def smuggler(k):
            setattr(k, "y[i: N] = 1.0 }  kernel other", 2.0)

    with pytest.raises(UsageError, match="no name"):

        @kernel("[N](x: f32[N]) -> (y: f32[N])")
        def buffers(k):
            k.buffer("t: f32 in reg }", f32)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_runs(number: int, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "page.py"  # `inspect` wants a file
    path.write_text(BLOCKS[number])
    exec(compile(BLOCKS[number], str(path), "exec"), {"__name__": "page"})  # noqa: S102


# --- einsum --------------------------------------------------------------------------------------


@st.composite
def specs(draw: st.DrawFn) -> str:
    letters = draw(st.permutations(string.ascii_lowercase[:5]))
    operands = draw(
        st.lists(st.lists(st.sampled_from(letters), max_size=3), min_size=1, max_size=3)
    )
    used = sorted({c for o in operands for c in o})
    result = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
    arrow = draw(st.booleans())
    return ",".join("".join(o) for o in operands) + ("->" + "".join(result) if arrow else "")


@given(specs(), st.integers(0, 99))
def test_einsum_means_what_numpy_says(spec: str, seed: int):
    made = einsum(spec, i64)
    rng = np.random.default_rng(seed)
    sizes = {c: int(rng.integers(0, 4)) for c in "abcde"}
    operands = spec.split("->")[0].split(",")
    arrays = [rng.integers(-4, 5, [sizes[c] for c in o]) for o in operands]
    inputs = {f"x{k}": np.asarray(a) for k, a in enumerate(arrays)}
    got = run(made, inputs, {d.name: sizes[d.name.lower()] for d in made.dims})["y"]
    assert np.array_equal(got, np.einsum(spec, *arrays))


def test_narrow_sums_are_wide():
    assert einsum("ij,jk", bf16) == parse_kernel(
        """kernel einsum[I, J, K](x0: bf16[I, J], x1: bf16[J, K]) -> (y: bf16[I, K]) {
             y[i: I, k: K] = bf16(sum(j: J) f32(x0[i, j]) * f32(x1[j, k]))
           }"""
    )
    assert "f64(x0[i])" in kir.format_kernel(einsum("i->", accumulate="f64"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [("ij->k", "no operand"), ("i...->i", "no index"), ("ij->ii", "twice"),
     ("i;j->i", "no index"), ("Ij->j", "no index")],
)  # fmt: skip
def test_what_is_no_einsum(spec: str, why: str):
    with pytest.raises(UsageError, match=why):
        einsum(spec)
    with pytest.raises(UsageError, match="no dtype"):
        einsum("i->i", "bool")
