"""The verifier: what is right passes, what is wrong is caught, shrunk and told; and its tools."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kir.backend import Arrays, Artifact, Backend, Executable, Manifest
from kir.check import check_kernel
from kir.dtypes import DTYPES
from kir.errors import KirError, MissingHardwareError, UsageError, VerificationError
from kir.generate import CONSTRUCTS
from kir.interpret import run
from kir.ir import Kernel, Module, Schedule, Step
from kir.report import Report
from kir.rewrites import REWRITES, Effect
from kir.rewrites.base import Rewrite
from kir.specialise import infer_dims
from kir.syntax import format_kernel, parse, parse_kernel
from kir.testing import (
    PROFILES,
    assert_equivalent,
    dims_choices,
    dims_for,
    inputs,
    kernels,
    make_array,
    make_inputs,
)
from kir.verify import verify

SOFTMAX = """
kernel softmax[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
  m[i: M]       = max(j: N) x[i, j]
  e[i: M, j: N] = exp(x[i, j] - m[i])
  s[i: M]       = sum(j: N) e[i, j]
  y[i: M, j: N] = e[i, j] / s[i]
}"""
MATMUL = """
kernel mm[M, N, K](x: f16[M, K], w: f16[K, N]) -> (y: f32[M, N]) {
  y[i: M, j: N] = sum(k: K) f32(x[i, k]) * f32(w[k, j])
}"""
TILED = """
kernel mm[M, N, K](x: f16[M, K], w: f16[K, N]) -> (y: f32[M, N]) {
  grid io: cdiv(M, 8), jo: cdiv(N, 8) {
    buffer acc: f32[8, 8] in reg = 0.0
    for ko: cdiv(K, 4) {
      tile i: 8, j: 8, k: 4 where io*8 + i < M, jo*8 + j < N, ko*4 + k < K {
        acc[i, j] += f32(x[io*8 + i, ko*4 + k]) * f32(w[ko*4 + k, jo*8 + j])
      }
    }
    tile i: 8, j: 8 where io*8 + i < M, jo*8 + j < N { y[io*8 + i, jo*8 + j] = acc[i, j] }
  }
}"""
BUGS = {
    "dropped remainder": ("for ko: cdiv(K, 4)", "for ko: K // 4"),
    "swapped index": ("w[ko*4 + k, jo*8 + j]) ", "w[ko*4 + k, jo*8 + i]) "),
    "wrong mask": ("ko*4 + k < K", "ko*4 + k < K - 1"),
    "missing initial value": ("in reg = 0.0", "in reg = 1.0"),
    "forgotten block": ("grid io: cdiv(M, 8)", "grid io: M // 8"),
    "narrowed accumulator": ("acc[i, j] += f32(x[io*8 + i, ko*4 + k]) * f32(w[ko*4 + k, jo*8 + j])",
                             "acc[i, j] += f32(x[io*8 + i, ko*4 + k] * w[ko*4 + k, jo*8 + j])"),
    "out of range": ("io*8 + i < M, jo*8 + j < N, ko*4 + k < K {", "jo*8 + j < N, ko*4 + k < K {"),
}  # fmt: skip


def planted(bug: str) -> Kernel:
    old, new = BUGS[bug]
    text = TILED.replace(old.rstrip(), new.rstrip(), 1)
    assert text != TILED
    return parse_kernel(text)


# --- what is right passes ----------------------------------------------------------------------


def test_spec() -> None:
    report = verify(parse_kernel(SOFTMAX), examples=12)
    assert [r.name for r in report.rungs] == ["static", "spec"]
    assert report.rungs[1].runs == 12 and 0 < (report.rungs[1].worst or 0) <= 1
    assert len(report.shapes) > 5 and not report.degenerate
    assert "no difference found" in report.text()
    assert report.record()["rungs"][1]["verdict"] == "verified"


def test_same_seed_same_report() -> None:
    kernel = parse_kernel(SOFTMAX)
    first, again, other = (verify(kernel, examples=6, seed=s).record() for s in (1, 1, 2))
    assert first == again
    assert first["shapes"] != other["shapes"]


def test_graph() -> None:
    module = parse("""
    kernel scale[N, by = 2](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * f32(by) }
    kernel total[N](x: f32[N]) -> (y: f32[]) { y = sum(i: N) x[i] }
    graph net[N](x: f32[N]) -> (s: f32[]) { t = scale[by = 3](x)  s = total(t) }""")
    report = verify(module.graphs()["net"], module=module, examples=8)
    assert report.rungs[1].runs == 8
    with pytest.raises(UsageError):
        verify(module.graphs()["net"], examples=1)


def test_schedule_alone() -> None:
    report = verify(parse_kernel(SOFTMAX), schedule="none", examples=5)
    assert [r.name for r in report.rungs] == ["static", "ring", "spec", "schedule"]


def test_cpu() -> None:
    report = verify(parse_kernel(SOFTMAX), target="cpu", examples=5)
    target = report.rungs[-1]
    assert (target.name, target.verdict, target.runs) == ("target cpu", "verified", 10)


@pytest.mark.triton
def test_nvidia_is_interpreted_and_compiled() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    report = verify(parse_kernel(SOFTMAX), target="nvidia", examples=2)
    assert [r.verdict for r in report.rungs[-2:]] == ["interpreted", "compiled"]


# --- what is wrong is caught -------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Rewrite):
    """`broken(bug)`: not the tiled product that it says it makes."""

    name: ClassVar[str] = "broken"
    effect: ClassVar[Effect] = "exact"
    bug: str

    def edit(self, kernel: Kernel) -> Kernel:
        return planted(self.bug)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWRITES, "broken", Broken)
    monkeypatch.setattr("kir.check.check_kernel", lambda _: None)  # the static rung sees some


def scheduled(bug: str, *after: Step) -> tuple[Kernel, Module]:
    spec = parse_kernel(MATMUL)
    return spec, Module((spec, Schedule("bad", "mm", (Step("broken", (bug,)), *after))))


SEEN_IN_NUMBERS = ("narrowed accumulator",)
"""Nothing is rounded in the ring."""


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.usefixtures("broken")
def test_a_planted_bug_in_the_schedule_is_caught(bug: str) -> None:
    spec, module = scheduled(bug)
    with pytest.raises(VerificationError) as e:
        verify(spec, module=module, schedule="bad", examples=40, path="mm.kir")
    message = str(e.value)
    rung = "schedule" if bug in SEEN_IN_NUMBERS else "ring"
    assert f"is wrong on the rung `{rung}`" in message
    assert format_kernel(planted(bug)) in message
    assert "first wrong after step 1, `broken(" in message
    assert "kir verify mm.kir --kernel mm --schedule bad --examples 40 --seed 0" in message
    assert "inputs `" in message


@pytest.mark.usefixtures("broken")
def test_a_failure_is_shrunk_and_shown_whole() -> None:
    spec, module = scheduled("dropped remainder")
    with pytest.raises(VerificationError) as e:
        verify(spec, module=module, schedule="bad", examples=40)
    message = e.value.message
    found = re.search(r"for K=(\d+), M=(\d+), N=(\d+); inputs `integers`", message)
    assert found is not None and math.prod(map(int, found.groups())) <= 20
    assert "expected #" in message and "x = [[" in message


@pytest.mark.usefixtures("broken")
def test_the_derivation_shrinks_to_the_step_that_is_wrong() -> None:
    spec = parse_kernel(MATMUL)
    steps = (
        Step("rule", ("y", "mul_commute")),
        Step("broken", ("dropped remainder",)),
        Step("hint", ("io", "num_warps", 4)),
    )
    module = Module((spec, Schedule("bad", "mm", steps)))
    with pytest.raises(VerificationError) as e:
        verify(spec, module=module, schedule="bad", examples=40)
    assert "first wrong after step 2, `broken(" in e.value.message
    least = re.search(r"schedule least of mm \{\n(.*?)\n\}", e.value.message, re.DOTALL)
    assert least is not None and least[1].strip() == "broken(dropped remainder)"


class Fake(Backend):
    """A target that runs the interpreter, with something wrong."""

    manifest = Manifest("fake", ("fake",), {"fake": ("f1",)}, {}, {})

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        return (Step("loops"),)

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        return Artifact(kernel, target, arch, {})

    def load(self, artifact: Artifact) -> Executable:
        if self.wrong == "no hardware":
            raise MissingHardwareError("no such chip here")
        return FakeExecutable(artifact.kernel, self.wrong)


class FakeExecutable(Executable):
    def __init__(self, kernel: Kernel, wrong: str) -> None:
        self.kernel, self.wrong, self.calls = kernel, wrong, 0

    def __call__(
        self, inputs: Arrays, dims: Any = None, outputs: Arrays | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        assert outputs is not None
        self.calls += 1
        bound = infer_dims(self.kernel, {n: a.shape for n, a in inputs.items()}, dims)
        found = run(self.kernel, inputs, bound)
        for name, array in found.items():
            flat = outputs[name].reshape(-1)
            flat[:] = array.reshape(-1)
            if self.wrong == "last element" and flat.size > 3:
                flat[-1] = np.nan  # as the poison it was before
            if self.wrong == "second run" and self.calls % 2 == 0 and flat.size > 3:
                flat[0] += 1
            if self.wrong == "dtype":
                return {name: array.astype(np.float64) for name in found}
        return dict(outputs)


def with_fake(monkeypatch: pytest.MonkeyPatch, wrong: str) -> Report:
    fake = Fake(wrong)
    monkeypatch.setattr("kir.pipeline.get_backend", lambda *_: fake)
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] + 1.0 }"
    return verify(parse_kernel(text), target="fake", examples=15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("last element", "got nan"), ("second run", "got"), ("dtype", "came out as float64")],
)
def test_a_wrong_target_is_caught(
    wrong: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VerificationError, match=message) as e:
        with_fake(monkeypatch, wrong)
    assert "`target fake`" in e.value.message


def test_a_right_target_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    report = with_fake(monkeypatch, "nothing")
    assert report.rungs[-1].runs == 30


def test_what_was_only_compiled_is_called_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    report = with_fake(monkeypatch, "no hardware")
    assert (report.rungs[-1].verdict, report.rungs[-1].runs) == ("compiled", 0)
    assert not any(r.name.startswith("target") for r in report.rungs)


def test_an_unsafe_kernel_fails_the_static_rung() -> None:
    text = "kernel k[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i + 1] }"
    with pytest.raises(KirError, match="out of bounds"):
        verify(parse_kernel(text), examples=2)


# --- degenerate tasks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("x[i] * 0.0 - x[i] * 0.0", None),  # NaN of NaN and infinity: no constant passes
        ("0.0", "zeros would pass for `y`"),
        ("1.5", "one value everywhere would pass for `y`"),
        ("max(x[i], x[i])", "the input `x` would pass for `y`"),
        ("x[i] + 1.0", None),
    ],
)
def test_degenerate_tasks_are_named(body: str, named: str | None) -> None:
    text = f"kernel k[N](x: f32[N]) -> (y: f32[N]) {{ y[i: N] = {body} }}"
    report = verify(parse_kernel(text), examples=15)
    assert (named in report.degenerate) if named else not report.degenerate


def test_where_nothing_can_be_said_nothing_is_verified() -> None:
    text = """kernel k[N]() -> (y: f32[N]) {
      y[i: N] = 1.0 / (rsqrt(f32(i) + 2.0) - rsqrt(f32(i) + 2.0))
    }"""
    with pytest.raises(VerificationError, match="no output element has a bound"):
        verify(parse_kernel(text), examples=10, seed=3)


# --- the tools ---------------------------------------------------------------------------------


def test_dims_cover_the_edges() -> None:
    choices = dims_choices(parse_kernel(MATMUL), (parse_kernel(TILED),))
    sizes = {v for c in choices for v in c.values()}
    assert {0, 1, 3, 7, 8, 9, 17, 5, 127, 128, 129} <= sizes
    assert choices[0] == {"M": 0, "N": 0, "K": 0}


def test_dims_respect_constraints_and_indices() -> None:
    text = """kernel k[N, V, T, p = 2](x: f32[V], k: i32[T], y: f32[N]) -> (z: f32[T])
    where N % 16 == 0, V > T { z[t: T] = x[k[t]] }"""
    kernel = parse_kernel(text)
    choices = dims_choices(kernel)
    assert len(choices) > 20
    assert all(c["N"] % 16 == 0 and c["V"] > c["T"] and c["p"] == 2 for c in choices)
    assert {c["p"] for c in dims_choices(kernel, parameters=True)} == {0, 1, 2, 3}
    for seed, dims in enumerate(choices[:: len(choices) // 20]):
        arrays = make_inputs(kernel, dims, "special", seed)
        assert ((arrays["k"] >= 0) & (arrays["k"] < max(dims["V"], 1))).all()
        run(kernel, arrays, dims)
    with pytest.raises(VerificationError, match="no dims were found"):
        dims_choices(parse_kernel(text.replace("V > T", "V > T, V < T")))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_profiles(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for profile in PROFILES:
        array = make_array(dtype, (40, 5), profile, rng)
        assert array.shape == (40, 5) and array.dtype == dtype.numpy
        if dtype.is_float and profile != "special":
            assert np.isfinite(array.astype(np.float64)).all()
    special = make_array(dtype, (4000,), "special", rng).astype(np.float64)
    if dtype.is_float:
        assert np.isnan(special).any() and (special == 0).any()
        assert len(np.unique(np.signbit(special[special == 0]))) == 2
    elif dtype.is_integer:
        assert {float(v) for v in dtype.limits()} <= set(special.tolist())


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_inputs_strategy(data: st.DataObject) -> None:
    kernel = parse_kernel(MATMUL)
    dims = data.draw(dims_for(kernel))
    arrays = data.draw(inputs(kernel, dims, tame=True))
    assert infer_dims(kernel, {n: a.shape for n, a in arrays.items()}) == dims
    assert all(np.isfinite(a.astype(np.float32)).all() for a in arrays.values())


def test_assert_equivalent() -> None:
    spec, tiled = parse_kernel(MATMUL), parse_kernel(TILED)
    assert 0 < assert_equivalent(spec, tiled) <= 1
    with pytest.raises(VerificationError, match="differs from `mm` in `y`"):
        assert_equivalent(spec, planted("wrong mask"))
    assert assert_equivalent(tiled, tiled, exact=True) == 0
    with pytest.raises(VerificationError):
        assert_equivalent(spec, planted("narrowed accumulator"), exact=True)


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_random_kernels_are_well_formed(construct: str) -> None:
    @settings(
        max_examples=12,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kernels(constructs=(construct,)))
    def check(kernel: Kernel) -> None:
        assert parse_kernel(format_kernel(kernel)) == kernel
        check_kernel(kernel)

    check()
