"""Replay is deterministic: every derivation here gives the text, and so the hash, that it gave when
`replays.json` was written, on whatever machine and Python that was. `--update-goldens` writes it
anew after a change that is meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kir.derivation import Derivation, derive, from_json, kernel_hash
from kir.ir import Kernel, Module, Step
from kir.pipeline import Target, choose_steps, expand, is_scheduled
from kir.specialise import bind_defaults, specialise
from kir.syntax import load, parse

ROOT = Path(__file__).parent.parent
HASHES = Path(__file__).parent / "replays.json"
CPU = Target("cpu", arch="x86-64-v3")
"""Not the machine's own, whose caches the default schedule looks at."""
FILES = sorted((ROOT / "examples").rglob("[!.]*.kir"))


def derivations(module: Module) -> Iterator[tuple[str, Kernel, tuple[Step, ...]]]:
    """Each kernel's default schedules, and each named schedule, parameters bound."""
    kernels = {
        name: specialise(kernel, {d.name: bind_defaults(kernel)[d.name] for d in kernel.dims
                                  if d.default is not None})
        for name, kernel in module.kernels().items()
    }  # fmt: skip
    for name, kernel in kernels.items():
        if not is_scheduled(kernel):
            for target in (CPU, Target("nvidia")):
                yield f"{name} on {target.name}", kernel, choose_steps(kernel, target)
    for name, schedule in module.schedules().items():
        if schedule.kernel in kernels:
            yield (
                f"{name} of {schedule.kernel}",
                kernels[schedule.kernel],
                expand(schedule, module.schedules()),
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_replay_gives_what_it_gave(path: Path, update_goldens: bool) -> None:
    found = {}
    for name, kernel, steps in derivations(parse(load(path))):
        made = derive(kernel, steps)
        again = from_json(made.json())
        assert again == made
        found[name] = {"steps": len(steps), "spec": made.spec, "result": made.result}
    key = str(path.relative_to(ROOT))
    stored = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    if update_goldens:
        stored[key] = found
        HASHES.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
    assert found == stored[key]


def test_no_hash_is_left_over() -> None:
    stored = json.loads(HASHES.read_text())
    assert set(stored) == {str(p.relative_to(ROOT)) for p in FILES}


def test_a_claimed_result_is_checked() -> None:
    (kernel,) = parse(load(ROOT / "examples" / "add.kir")).kernels().values()
    made = derive(kernel, choose_steps(kernel, CPU))
    assert kernel_hash(made.replay(kernel)[-1][1]) == made.result
    wrong = Derivation(made.kernel, made.steps, made.name, made.spec, "0" * 64)
    with pytest.raises(Exception, match="gives another kernel than it claims"):
        wrong.replay(kernel)
