"""Every rewrite on small programs: tests/rewrites/NAME.kir holds one kernel with schedules.

A schedule called `good...` must apply; one called `refused...` must be refused at its last step.
NAME.expected shows the IR after each good one and each refusal as a user sees it;
`--update-goldens` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kir.check import check_kernel
from kir.derivation import approximations, derive, effect_of, from_json, kernel_hash, replay
from kir.errors import RewriteError
from kir.ir import Kernel, Module, Schedule
from kir.rewrites import REWRITES, canonical, legal_moves, make_rewrite
from kir.rewrites.base import Choice, Whole
from kir.syntax import format_kernel, load, parse, parse_kernel
from kir.testing import assert_equivalent

FOLDER = Path(__file__).parent / "rewrites"
CASES = sorted(FOLDER.glob("*.kir"))


def read(path: Path) -> tuple[Module, Kernel]:
    module = parse(load(path))
    (kernel,) = module.kernels().values()
    return module, kernel


def schedules(module: Module, prefix: str) -> list[Schedule]:
    return [s for name, s in module.schedules().items() if name.startswith(prefix)]


def good_ones() -> list[tuple[str, Kernel, Schedule]]:
    found = []
    for path in CASES:
        module, kernel = read(path)
        found += [(f"{path.stem}-{s.name}", kernel, s) for s in schedules(module, "good")]
    return found


GOOD = good_ones()


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_what_a_user_sees(path: Path, update_goldens: bool) -> None:
    module, kernel = read(path)
    parts = []
    for schedule in schedules(module, "good"):
        after = replay(kernel, schedule.steps)[-1][1]
        parts.append(f"# {schedule.name}\n{format_kernel(after)}")
    for schedule in schedules(module, "refused"):
        before = replay(kernel, schedule.steps[:-1])
        with pytest.raises(RewriteError) as caught:
            make_rewrite(schedule.steps[-1]).edit(before[-1][1] if before else kernel)
        parts.append(f"# {schedule.name}\n{caught.value.render()}\n")
    assert len(parts) == len(module.schedules()), "a schedule is neither good nor refused"
    text = "\n".join(parts)
    golden = path.with_suffix(".expected")
    if update_goldens:
        golden.write_text(text)
    assert golden.exists(), "run with --update-goldens, and read what it wrote"
    assert golden.read_text() == text


@pytest.mark.parametrize(("kernel", "schedule"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_the_meaning_stays(kernel: Kernel, schedule: Schedule) -> None:
    stages = replay(kernel, schedule.steps)
    after = stages[-1][1]
    check_kernel(after)
    effect = effect_of(kernel, stages)
    approximates = effect == "approximates"
    assert_equivalent(
        kernel,
        after,
        approximates=approximates,
        reals=effect != "exact",
        approximations=approximations(kernel, stages),
    )


@pytest.mark.parametrize(("kernel", "schedule"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_replay_is_the_same_by_text_and_json(kernel: Kernel, schedule: Schedule) -> None:
    made = derive(kernel, schedule.steps)
    again = from_json(made.json())
    assert again == made
    assert again.replay(kernel)[-1][1] == replay(kernel, schedule.steps)[-1][1]
    text = parse(format_kernel(kernel) + "\n" + made.text())
    (read_back,) = text.schedules().values()
    printed = parse_kernel(format_kernel(kernel))
    assert kernel_hash(replay(printed, read_back.steps)[-1][1]) == made.result


@pytest.mark.parametrize(("kernel", "schedule"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_moves_offer_the_last_step(kernel: Kernel, schedule: Schedule) -> None:
    """Some legal move is the step with other values for its open parameters, and each value that
    a move's domains offer is legal."""
    step = canonical(schedule.steps[-1])
    before = replay(kernel, schedule.steps[:-1])
    here = before[-1][1] if before else kernel
    if isinstance(step.args[0] if step.args else None, tuple) and step.rewrite != "reorder":
        pytest.skip("the step takes a group, which moves offer one by one")
    moves = legal_moves(here, [step.rewrite])
    assert moves, f"`{step.rewrite}` offers nothing where it applied"
    for move in moves:
        for name, domain in move.domains:
            assert isinstance(domain, Whole | Choice) and domain.tries, name
        for offered in list(move.steps())[:6]:
            make_rewrite(offered).edit(here)


@pytest.mark.parametrize("name", REWRITES)
def test_every_rewrite_has_cases(name: str) -> None:
    good = {s.steps[-1].rewrite for _, _, s in GOOD}
    refused = {
        s.steps[-1].rewrite for p in CASES for s in schedules(read(p)[0], "refused") if s.steps
    }
    assert name in good, f"no good schedule in tests/rewrites ends with `{name}`"
    assert name in refused or name == "loops", f"no refused schedule ends with `{name}`"
