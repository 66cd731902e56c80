"""The worker's verdicts: right is timed, wrong in any way is `wrong`, illegal is `refused`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kir.agent import worker
from kir.agent.evaluate import Problem
from kir.agent.variant import specialised
from kir.interpret import run

Array = np.ndarray[Any, Any]
Fault = Callable[[dict[str, Array], dict[str, Array]], None]

PROBLEM = Problem(
    source="""
    kernel scale[M, N](x: f32[M, N], k: i32[M]) -> (y: f32[M, N], n: i32[M]) {
      y[i: M, j: N] = x[i, j] * 3.0
      n[i: M] = k[i] + 1
    }
    """,
    kernel="scale",
    dims={"M": 3, "N": 5},
    target="cpu",
    via=None,
    arch="host",
    baseline="schedule s of scale { loops() }",
    seed=3,
)


class Faulty:
    """Runs the spec on the interpreter, then commits a fault (inputs, outputs)."""

    def __init__(self, fault: Fault, first_good: int = 0) -> None:
        self.fault, self.good = fault, first_good

    def __call__(
        self, inputs: dict[str, Array], dims: Mapping[str, int], outputs: dict[str, Array]
    ) -> dict[str, Array]:
        for name, array in run(specialised(PROBLEM), inputs).items():
            outputs[name][...] = array
        if self.good <= 0:
            self.fault(inputs, outputs)
        self.good -= 1
        return outputs


def reply_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault, first_good: int = 0
) -> dict[str, Any]:
    expected = tmp_path / "expected.npz"
    assert worker.prepare(PROBLEM, expected) == {"status": "ok"}
    executables = iter([Faulty(fault, first_good), Faulty(lambda i, o: None)])
    monkeypatch.setattr(worker, "compiled", lambda *_: next(executables))
    request = {"derivation": PROBLEM.baseline, "expected": str(expected), "repeats": 3}
    return worker.evaluate(PROBLEM, request)


def test_a_right_candidate_is_timed_beside_the_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reply = reply_to(monkeypatch, tmp_path, lambda i, o: None)
    assert reply["status"] == "ok"
    assert reply["seconds"] > 0 and reply["baseline_seconds"] > 0
    assert [len(s) for s in reply["report"]["samples"]] == [3, 3]


def unwritten(name: str) -> Fault:
    return lambda i, o: worker.poison(o[name][1:2])


def off(name: str, by: float) -> Fault:
    def fault(inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        outputs[name][-1] += np.asarray(by).astype(outputs[name].dtype)

    return fault


def writes_input(inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
    inputs["x"][0, 0] += 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (unwritten("y"), "`y`"),
        (unwritten("n"), "`n`"),
        (off("y", 1e-4), "`y`"),
        (off("n", 1), "`n`"),
        (writes_input, "input `x`"),
    ],
    ids=["unwritten float", "unwritten int", "slightly off", "off by one", "writes its input"],
)
def test_a_fault_is_found(
    fault: Fault, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reply = reply_to(monkeypatch, tmp_path, fault)
    assert reply["status"] == "wrong"
    assert words in reply["error"]


def test_a_fault_that_comes_later_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reply = reply_to(monkeypatch, tmp_path, off("y", 1.0), first_good=3)
    assert reply["status"] == "wrong"
    assert "after timing" in reply["error"]


def test_what_does_not_apply_is_refused(tmp_path: Path) -> None:
    from dataclasses import asdict

    request = {
        "action": "evaluate",
        "problem": asdict(PROBLEM),
        "derivation": "schedule s of scale { loops() split(nothing, 4) }",
        "expected": str(tmp_path / "none.npz"),
        "repeats": 3,
    }
    reply = worker.handle(request)
    assert reply["status"] == "refused"
    assert "nothing" in reply["error"]
