"""The commands as a user types them, on good input; `test_errors.py` has the bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kir.cli import main
from kir.syntax import parse_kernel

ROOT = Path(__file__).parent.parent
SOFTMAX = str(ROOT / "examples" / "softmax.kir")


class Kir:
    """Runs `kir ARGS` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *args: str, code: int = 0) -> str:
        self.monkeypatch.setattr(sys, "argv", ["kir", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = self.capsys.readouterr()
        assert int(stopped.value.code or 0) == code, captured.err
        return captured.out

    def json(self, *args: str) -> object:
        return json.loads(self(*args, "--json"))


@pytest.fixture
def kir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kir:
    return Kir(monkeypatch, capsys)


def test_check(kir: Kir) -> None:
    assert "ok" in kir("check", SOFTMAX)
    assert kir.json("check", SOFTMAX) == {"ok": True, "errors": []}


def test_check_for_given_dims(kir: Kir, tmp_path: Path) -> None:
    path = tmp_path / "k.kir"
    path.write_text(
        "kernel k[M, N, L](x: f32[L]) -> (y: f32[M, N]) { y[i: M, j: N] = x[i * N + j] }"
    )
    kir("check", str(path), code=1)
    assert "ok" in kir("check", str(path), "--shape", "M=4,N=5,L=20")


def test_fmt_changes_a_file_once(kir: Kir, tmp_path: Path) -> None:
    path = tmp_path / "k.kir"
    path.write_text("kernel k[N](x:f32[N])->(y:f32[N]){y[i:N]=x[i]*2 # twice\n}")
    kir("fmt", "--check", str(path), code=1)
    assert "formatted" in kir("fmt", str(path))
    assert "# twice" in path.read_text() and "2.0" in path.read_text()
    assert kir("fmt", "--check", str(path)) == ""
    assert kir("fmt", "--stdout", str(path)) == path.read_text()


def test_show_passes_ends_in_the_scheduled_kernel(kir: Kir) -> None:
    passes = kir.json("show", SOFTMAX, "--target", "nvidia", "--passes")
    assert isinstance(passes, list)
    steps = passes[0]["passes"]
    assert steps[0]["step"] == "spec" and len(steps) > 3
    assert steps[-1]["ir"] == kir("show", SOFTMAX, "--target", "nvidia")
    for step in steps:
        parse_kernel(step["ir"])
    assert "+" in kir("show", SOFTMAX, "--passes", "--diff")
    assert parse_kernel(kir("show", SOFTMAX, "--stage", "spec")).name == "softmax"


def test_run_on_given_arrays(kir: Kir, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    np.save(tmp_path / "x.npy", x)
    record = kir.json(
        "run", SOFTMAX, "--input", f"x={tmp_path / 'x.npy'}", "--save", str(tmp_path / "out")
    )
    assert isinstance(record, dict) and record["dims"] == {"M": 3, "N": 40}
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "y.npy"), e / e.sum(1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize("size", [10**7, 10**14])
def test_run_refuses_what_memory_cannot_hold(
    size: int, kir: Kir, capsys: pytest.CaptureFixture[str]
) -> None:
    kir.monkeypatch.setattr(sys, "argv", ["kir", "run", SOFTMAX, "--shape", f"M={size},N={size}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("too large")


def test_run_a_graph(kir: Kir) -> None:
    text = kir("run", str(ROOT / "examples" / "mlp.kir"), "--shape", "B=3,I=5,H=7,O=2")
    assert "GFLOP/s" in text and "[3, 2]" in text


def test_lower_writes_a_stage_or_all(kir: Kir, tmp_path: Path) -> None:
    out = tmp_path / "k.o"
    kir("lower", SOFTMAX, "--emit", "obj", "-o", str(out))
    assert out.read_bytes()[:4] == b"\x7fELF"
    kir("lower", SOFTMAX, "--emit", "artifact", "-o", str(tmp_path / "all"))
    names = {p.name for p in (tmp_path / "all").iterdir()}
    stages = ("llvm", "asm", "obj", "header", "so")
    assert names == {f"softmax.{s}" for s in stages} | {"artifact.json"}
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"
    record = kir.json("lower", SOFTMAX, "--emit", "llvm", "--shape", "M=4,N=8")
    assert isinstance(record, list) and "define" in record[0]["text"]


def test_verify_reports_each_rung(kir: Kir) -> None:
    record = kir.json("verify", SOFTMAX, "--target", "cpu", "--examples", "3")
    assert isinstance(record, dict)
    assert {r["verdict"] for r in record["rungs"]} == {"proven", "verified"}


def test_tune_and_replay(kir: Kir, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 't.db'}"
    found = kir.json(
        "tune", SOFTMAX, "--shape", "M=8,N=32", "--budget", "60s", "--evaluations", "2",
        "--store", store,
    )  # fmt: skip
    assert isinstance(found, dict) and found["evaluations"] == 2
    again = kir.json("replay", store, str(found["node"]))
    assert isinstance(again, dict) and again["status"] == "ok"
    assert again["derivation"] == found["derivation"]


def test_targets_and_doctor(kir: Kir) -> None:
    rows = kir.json("targets")
    assert isinstance(rows, list)
    assert {(r["target"], r["via"]) for r in rows} >= {
        ("cpu", "llvm"), ("nvidia", "triton"), ("nvidia", "cute"), ("amd", "triton"),
        ("accel", "llvm"),
    }  # fmt: skip
    findings = kir.json("doctor")
    assert isinstance(findings, list)
    assert all(f["ok"] or f["remedy"] for f in findings)
    assert "triton" in kir("targets") and "python" in kir("doctor")
