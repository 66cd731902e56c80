"""Derivations: two forms that round-trip, replay that repeats, refusals that say where and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kir.cli import main
from kir.derivation import (
    Derivation,
    derive,
    effect_of,
    from_json,
    from_record,
    kernel_hash,
    replay,
)
from kir.errors import RewriteError, ScheduleError
from kir.ir import Kernel, Step
from kir.pipeline import Target, choose_steps, expand
from kir.rewrites import apply_step, canonical, make_rewrite
from kir.syntax import parse, parse_kernel, parse_steps

ROOT = Path(__file__).parent.parent
SOFTMAX = ROOT / "examples" / "softmax.kir"
SPEC = "kernel sum_up[N](x: f32[N]) -> (y: f32) {\n  y = sum(i: N) x[i]\n}\n"


def spec() -> Kernel:
    return parse_kernel(SPEC)


def test_json_and_text_round_trip() -> None:
    made = derive(
        spec(), parse_steps("loops() split(i, 8, tail = mask, inner = lane) hint(i_o, k, -3)")
    )
    again = from_json(made.json())
    assert again == made
    assert again.steps[1] == Step("split", ("i", 8), (("inner", "lane"),))  # defaults left out
    (schedule,) = parse(SPEC + made.text()).schedules().values()
    assert schedule.steps == made.steps
    assert kernel_hash(again.replay(spec())[-1][1]) == made.result


def test_canonical_steps_are_written_in_one_way() -> None:
    (loose,) = parse_steps("split(factor = 8, loop = i)")
    assert canonical(loose) == Step("split", ("i", 8))
    with pytest.raises(ScheduleError, match="needs the argument `factor`"):
        canonical(Step("split", ("i",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "kir-derivation-0"}, "no derivation of this version"),
        ({"steps": 3}, "is no list"),
        ({"kernel": None}, '"kernel" is no text'),
        ({"result": 7}, '"result" is no text'),
        ({"steps": [{"rewrite": "split"}]}, "needs the argument `loop`"),
        ({"steps": [{"rewrite": "splat"}]}, "no rewrite `splat`"),
        ({"steps": [{"rewrite": 1}]}, "step 1 is malformed"),
        ({"steps": ["loops"]}, "step 1 is no JSON object"),
        ({"steps": [{"rewrite": "split", "args": ["i", True]}]}, "an argument True"),
        ({"steps": [{"rewrite": "split", "args": ["i", {}]}]}, "an argument {}"),
        ({"steps": [{"rewrite": "loops", "options": 1}]}, "the options of step 1"),
    ],
)
def test_malformed_json_is_refused(change: dict[str, Any], message: str) -> None:
    record = {**derive(spec(), [Step("loops")]).record(), **change}
    with pytest.raises(ScheduleError, match=message):
        from_record(record)


def test_text_that_is_no_json() -> None:
    for text in ("{", "[]", "[" * 100_000):
        with pytest.raises(ScheduleError):
            from_json(text)


def test_composition() -> None:
    first = derive(spec(), [Step("loops")], "first")
    middle = apply_step(spec(), Step("loops"))
    second = derive(middle, [Step("split", ("i", 8))], "second")
    both = first + second
    assert both.steps == first.steps + second.steps
    assert (both.spec, both.result) == (first.spec, second.result)
    assert both.replay(spec())[-1][1] == second.replay(middle)[-1][1]
    with pytest.raises(ScheduleError, match="does not begin where `second` ends"):
        _ = second + first
    with pytest.raises(ScheduleError, match="cannot go on from one of `sum_up`"):
        _ = first + Derivation("other")


def test_an_older_kernel_is_named_as_the_cause() -> None:
    made = derive(spec(), parse_steps("loops() split(i, 8)"), "old")
    newer = parse_kernel(SPEC.replace("i: N", "k: N").replace("x[i]", "x[k]"))
    with pytest.raises(RewriteError) as caught:
        made.replay(newer)
    assert "step 2, `split(i, 8)`" in caught.value.message
    assert "made for another version of `sum_up`" in caught.value.message
    changed = parse_kernel(SPEC.replace("x[i]", "x[i] * 2.0"))
    with pytest.raises(ScheduleError, match="`sum_up` has changed"):
        made.replay(changed)


def test_a_lost_name_is_traced_to_the_step_that_took_it() -> None:
    two = parse_kernel(
        "kernel two[N](x: i32[N]) -> (y: i32[N], z: i32[N]) {"
        " for i: N { y[i] = x[i] } for j: N { z[j] = x[j] } }"
    )
    with pytest.raises(RewriteError) as caught:
        replay(two, parse_steps("fuse(i, j) split(i, 4) bind(j, grid)"))
    assert "step 3, `bind(j, grid)`: `two` has no loop `j`" in caught.value.message
    assert "step 1, `fuse(i, j)`, made it `i`" in (caught.value.hint or "")


def test_a_group_names_several() -> None:
    two = parse_kernel(
        "kernel two[N](x: i32[N]) -> (y: i32[N], z: i32[N]) {"
        " for i: N { y[i] = x[i] } for j: N { z[j] = x[j] } }"
    )
    (step,) = parse_steps("split((i, j), 4)")
    singly = replay(two, parse_steps("split(i, 4) split(j, 4)"))[-1][1]
    assert apply_step(two, step) == singly
    assert make_rewrite(step).effect_on(two) == "exact"
    with pytest.raises(RewriteError, match="no loop `k`"):
        apply_step(two, parse_steps("split((i, k), 4)")[0])


def test_the_effect_of_a_derivation_is_its_strongest_step() -> None:
    exact = replay(spec(), parse_steps("loops() split(i, 8)"))
    assert effect_of(spec(), exact) == "exact"
    regrouped = replay(spec(), parse_steps("loops() split(i, 8) rfactor(y_acc, i)"))
    assert effect_of(spec(), regrouped) == "reassociates"


def test_schedules_use_each_other() -> None:
    text = (
        SPEC
        + """
    schedule base of sum_up { loops() }
    schedule more of sum_up { use(base) split(i, 8) }
    schedule round_ of sum_up { use(square) }
    schedule square of sum_up { use(round_) }
    schedule lost of sum_up { use(bass) }
    """
    )
    module = parse(text)
    known = module.schedules()
    assert expand(known["more"], known) == (Step("loops"), Step("split", ("i", 8)))
    assert choose_steps(spec(), Target("cpu"), "more", module) == expand(known["more"], known)
    with pytest.raises(ScheduleError, match="uses itself"):
        expand(known["round_"], known)
    with pytest.raises(ScheduleError) as caught:
        expand(known["lost"], known)
    assert "base" in (caught.value.hint or "")


def test_replay_is_the_same_under_any_hash_seed() -> None:
    """Another process, whose sets and dicts of strings are in another order, gets equal text."""
    program = (
        "import sys; from kir.derivation import derive; from kir.pipeline import *;"
        "from kir.syntax import *; k = parse(load(sys.argv[1])).kernels()['softmax'];"
        "t = Target('nvidia'); print(derive(k, choose_steps(k, t)).json())"
    )
    found = set()
    for seed in ("1", "77"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(SOFTMAX)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=True, cwd=ROOT
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert from_json(found.pop()).result


# --- the command -------------------------------------------------------------------------------


def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["kir", "rewrite", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_the_command_applies_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(SOFTMAX)
    code, out, _ = invoke(monkeypatch, capsys, file, "loops()", "split(j, 8)")
    assert code == 0
    kernel = parse(SOFTMAX.read_text()).kernels()["softmax"]
    want = replay(kernel, parse_steps("loops() split(j, 8)"))[-1][1]
    assert parse_kernel(out) == want
    ir, saved, text = tmp_path / "after.kir", tmp_path / "d.json", tmp_path / "d.kir"
    steps = ("loops()", "split(j, 8)")
    assert invoke(monkeypatch, capsys, file, *steps, "-o", str(ir), "--save", str(saved))[0] == 0
    assert parse_kernel(ir.read_text()) == want
    assert from_json(saved.read_text()).result == kernel_hash(want)
    assert invoke(monkeypatch, capsys, file, *steps, "--save", str(text))[0] == 0
    for source in (saved, text):  # both forms serve as a schedule, here and elsewhere
        code, out, _ = invoke(
            monkeypatch, capsys, file, "--schedule", str(source), "hint(j_o, a, 1)"
        )
        assert code == 0
        assert parse_kernel(out) == apply_step(want, Step("hint", ("j_o", "a", 1)))
        assert (
            choose_steps(kernel, Target("cpu"), str(source)) == from_json(saved.read_text()).steps
        )


def test_the_command_shows_diffs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = invoke(monkeypatch, capsys, str(SOFTMAX), "loops()", "split(j, 8)", "--diff")
    assert code == 0
    assert out.count("# loops()") == out.count("# split(j, 8)") == 1
    assert "+    for j_o: cdiv(N, 8), j: 8 where j_o * 8 + j < N {" in out.splitlines()


def test_the_command_lists_what_is_legal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(SOFTMAX)
    code, out, _ = invoke(monkeypatch, capsys, file, "--json")
    assert code == 0
    moves = json.loads(out)
    kernel = parse(SOFTMAX.read_text()).kernels()["softmax"]
    assert moves
    for move in moves:
        (step,) = parse_steps(move["step"])
        make_rewrite(step).edit(kernel)
    code, out, _ = invoke(monkeypatch, capsys, file, "--only", "inline")
    assert code == 0 and "  inline(m)" in out and "  loops()" not in out
    code, _, err = invoke(monkeypatch, capsys, file, "--only", "inlin")
    assert (code == 2 and "`inline`" in err) or "inline" in err


def test_parameters_are_bound_as_schedules_expect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "examples" / "papers" / "flash_attention.kir")
    code, out, err = invoke(monkeypatch, capsys, file, "--schedule", "flash", "--only", "bind")
    assert code == 0, err
    assert "  bind(i_o, for)" in out.splitlines()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("splt(j, 8)", "did you mean `split`"),
        ("split(j", "not closed"),
        ("split(j, 8)", "`loops()` makes"),
        ("loops() split(jj, 8)", "did you mean `j`"),
    ],
)
def test_bad_steps_exit_with_2(
    step: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoke(monkeypatch, capsys, str(SOFTMAX), step)
    assert code in (1, 2) and not out
    assert message in err and "Traceback" not in err
