"""kir bench and the suite: what they print and refuse. No test looks at a time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.report import floors, geomean, markdown, summary
from benchmarks.roofline import roofline
from benchmarks.suite import CASES, GROUPS, quick
from kir.check import check_kernel
from kir.cli import main
from kir.errors import VerificationError
from kir.timing import interleaved

ROOT = Path(__file__).parent.parent
SOFTMAX = str(ROOT / "examples" / "softmax.kir")
KEYS = {"case", "threads", "ours_s", "peers", "limit_fraction"}


class Kir:
    """Runs `kir ARGS` in this process; gives stdout, or stderr where the code is not 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *args: str, code: int = 0) -> str:
        self.monkeypatch.setattr(sys, "argv", ["kir", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = self.capsys.readouterr()
        assert int(stopped.value.code or 0) == code, captured.err
        assert "Traceback" not in captured.err
        return captured.err if code else captured.out


@pytest.fixture
def kir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kir:
    return Kir(monkeypatch, capsys)


SMALL = ("bench", SOFTMAX, "--shape", "M=4,N=64", "--budget", "0.001")


def test_a_kernel_beside_the_limits_and_another_schedule(kir: Kir) -> None:
    out = kir(*SMALL, "--schedule", "default", "--schedule", "none", "--threads", "1")
    assert "softmax on cpu" in out and "of copy" in out and "over none" in out


def test_json_to_a_file_and_to_stdout(kir: Kir, tmp_path: Path) -> None:
    kir(*SMALL, "--threads", "1,2", "--json", str(tmp_path / "x.json"))
    for text in (
        (tmp_path / "x.json").read_text(),
        kir(*SMALL, "--threads", "1,2", "--json", "-"),
    ):
        records = json.loads(text)
        assert [r["threads"] for r in records] == [1, 2]
        assert all(r.keys() >= KEYS and r["ours_s"] > 0 for r in records)


@pytest.mark.torch
def test_a_peer(kir: Kir, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "peer.py"
    path.write_text("def softmax(x):\n    return x.softmax(-1)\n\ndef other(x):\n    return x\n")
    out = kir(*SMALL, "--peer", str(path), "--threads", "1", "--json", "-")
    assert json.loads(out)[0]["peers"]["eager"] > 0
    err = kir(*SMALL, "--peer", f"{path}:other", code=1)
    assert "is not what the peer computes" in err
    assert "no function `third`" in kir(*SMALL, "--peer", f"{path}:third", code=2)
    path.write_text("def softmax(x, y):\n    return x\n")
    assert "the peer fails" in kir(*SMALL, "--peer", str(path), code=2)
    path.write_text("def softmax(x):\n    return x, x\n")
    assert "gives 2 results" in kir(*SMALL, "--peer", str(path), code=2)
    path.write_text("1 / 0")
    assert "ZeroDivisionError" in kir(*SMALL, "--peer", str(path), code=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("no.kir",), "cannot read"),
        ((str(ROOT / "examples" / "mlp.kir"),), "is a graph"),
        ((SOFTMAX, "--kernel", "other"), "there is no kernel `other`"),
        ((SOFTMAX, "--shape", "M=4,Q=8"), "has no dim `Q`"),
        ((SOFTMAX, "--shape", "M=-4"), "less than 0"),
        ((SOFTMAX, "--schedule", "mine"), "no schedule or file `mine`"),
        ((SOFTMAX, "--threads", "0"), "no list of counts"),
        ((SOFTMAX, "--threads", "one"), "no list of counts"),
        ((SOFTMAX, "--against", "eager"), "nothing to time"),
        ((SOFTMAX, "--peer", "x.py", "--against", "later"), "no form `later`"),
        ((SOFTMAX, "--peer", "missing.py"), "no file missing.py"),
        ((SOFTMAX, "--quick"), "cases of the suite"),
        ((SOFTMAX, "--only", "x"), "cases of the suite"),
        (("--shape", "M=4"), "--shape is for a file"),
        (("--only", "no such case"), "no case has such a name"),
    ],
)
def test_misuse(kir: Kir, args: tuple[str, ...], message: str) -> None:
    assert message in kir("bench", *args, code=2)


@pytest.mark.torch
def test_one_case_of_the_suite(kir: Kir, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    kir.monkeypatch.setattr("benchmarks.cpu.keep_memory", lambda: None)
    path = tmp_path / "x.json"
    out = kir("bench", "--only", "matmul f32 64", "--threads", "1", "--json", str(path),
              "--budget", "0.001")  # fmt: skip
    assert "matmul f32 64" in out and "whole suite over eager" in out
    (record,) = json.loads(path.read_text())
    assert record.keys() >= KEYS and set(record["peers"]) == {"eager"}


def test_the_suite_is_whole() -> None:
    names = [c.name for c in CASES]
    assert len(set(names)) == len(names) and {c.group for c in CASES} == set(GROUPS)
    third = quick()
    assert set(third) < set(CASES) and len(third) <= len(CASES) / 3 + len(GROUPS)
    for kind in (
        "matmul f32 2048", "matmul bf16 odd 1000", "matvec", "batched", "matmul_tn", "matmul_nt",
        "linear_gelu", "conv2d f32 3x3", "conv2d f32 1x1", "depthwise", "grouped", "7x7", "conv1d",
        "conv3d", "conv_transpose", "softmax", "log_softmax", "layer_norm", "rms_norm",
        "group_norm", "batch_norm_relu", "gelu", "silu", "mish", "chain", "sum", "mean", "max",
        "argmax", "cumsum", "max_pool", "avg_pool", "embedding", "cross_entropy",
        "causal attention", "lstm", "rotary", "transpose",
    ):  # fmt: skip
        assert any(kind in n for n in names), kind


def test_every_kernel_of_the_suite_is_right() -> None:
    """The kernels stand the check, and all their dims have values."""
    seen = set()
    for case in CASES:
        kernel = case.kernel()
        assert not kernel.dims and case.bytes > 0
        if case.path not in seen:
            seen.add(case.path)
            check_kernel(case.spec() if "stride" not in case.dims else kernel)


@pytest.mark.torch
@pytest.mark.parametrize("group", GROUPS)
def test_functions_and_kernels_agree(group: str) -> None:
    """The smallest case of a group: KIR's result is PyTorch's in f64."""
    pytest.importorskip("torch")
    from benchmarks.cpu import check, expected, make_inputs
    from kir.pipeline import compile as compile_kernel

    case = min((c for c in CASES if c.group == group), key=lambda c: (c.flops, c.bytes))
    made = make_inputs(case)
    run = compile_kernel(case.spec(), "cpu", case.dims)
    got = run({name: array for name, (_, array) in made.items()})
    assert check(case, got, expected(case, [t for t, _ in made.values()]), "at all") < 1


@pytest.mark.torch
def test_a_wrong_result_is_found() -> None:
    pytest.importorskip("torch")
    from benchmarks.cpu import check

    case = next(c for c in CASES if c.name == "matmul f32 64")
    want = [np.ones((64, 64))]
    for bad in (np.zeros((64, 64), np.float32), np.full((64, 64), np.nan, np.float32)):
        with pytest.raises(VerificationError, match="KIR is wrong"):
            check(case, {"c": bad}, want, "before timing")


MACHINE = {
    "cpu": "a CPU", "llvm_cpu": "native", "cores": 2, "commit": "abc", "torch": "2", "llvm": "22",
    "llvmlite": "0.50", "numpy": "2", "load": 0.1,
}  # fmt: skip


def record(case: str, group: str, ours: float, **peers: float) -> dict[str, Any]:
    return {
        "case": case, "group": group, "threads": 1, "ours_s": ours, "peers": peers,
        "limit_fraction": 0.5, "limit": "copy", "copy_fraction": 0.5, "compile_s": 0.2,
        "cached_s": 0.01, "peers_compile_s": {"compile": 3.0}, "peers_missing": {"jax": "none"},
        "operations": 1e6, "bytes": 1e6, "peak_flops": 1e11, "copy_bytes_per_s": 2e10,
        "cold": True, "machine": MACHINE,
    }  # fmt: skip


def test_floors_and_means() -> None:
    records = [
        record("a", "matmul f32", 1.0, eager=0.5, compile=2.0),
        record("b", "matmul f32", 1.0, eager=2.0),
        record("c", "conv", 2.0, eager=1.0),
        record("d", "rows", 1.0, eager=3.0, compile=0.9),
    ]
    assert geomean([1.0, 4.0]) == pytest.approx(2.0)
    lines = floors(records)
    found = {line.split(":")[0]: line for line in lines}
    assert "1.00, floor 0.95: met" in found["f32 products over eager, geometric mean"]
    assert "0.50, floor 0.8: MISSED (a" in found["f32 products over eager, worst"]
    assert "MISSED" in found["convolutions over eager, geometric mean"]
    assert "MISSED" in found["memory-bound over compile, worst"]
    assert "met" in found["first result, slowest"]
    assert "conv" in summary(records)


def test_table_and_plot() -> None:
    """Every case stands in the table, and the plot is XML with a point for each."""
    records = [record("a", "matmul f32", 1.0, eager=0.5, jax=2.0), record("d", "rows", 1.0)]
    text = markdown(records)
    assert "| a | 1 | 1.0 s | 0.50 | 2.00 |" in text and "| d | 1 | 1.0 s |  |  |" in text
    assert "No jax in some cases: none." in text
    root = ElementTree.fromstring(roofline(records))
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [t.split(":")[0] for t in titles] == ["a", "d"]


def test_new_records_replace_old_ones() -> None:
    pytest.importorskip("torch")
    from benchmarks.cpu import merged

    one, two = CASES[0].name, CASES[1].name
    old = [record(two, "matmul f32", 1.0), record(one, "matmul f32", 2.0)]
    new = [record(one, "matmul f32", 3.0)]
    found = merged([*old, record("gone", "rows", 1.0)], new)
    assert [(r["case"], r["ours_s"]) for r in found] == [(one, 3.0), (two, 1.0)]


def test_what_runs_elsewhere_tells_its_time() -> None:
    class Elsewhere:
        def __call__(self) -> None:
            raise AssertionError

        def seconds(self, count: int) -> float:
            return 3.0 * count

    times = interleaved({"a": Elsewhere(), "b": lambda: None}, 100.0, rounds=2)
    assert times["a"].median == 3.0


def test_interleaved_takes_turns() -> None:
    calls: list[str] = []
    times = interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 100.0, rounds=3
    )
    assert set(times) == {"a", "b"} and times["a"].rounds == 3
    turns = [c for c, before in zip(calls, ["", *calls], strict=False) if c != before]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert all(math.isfinite(t.median) and t.quartile <= t.median for t in times.values())
