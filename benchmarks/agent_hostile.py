"""Hostile candidates against the evaluator: `python -m benchmarks.agent_hostile --count 1000`.

Half are deeds of code that has taken over a job (tests/hostile_worker.py); half are derivations of
absurd numbers, which the real worker refuses, cannot compile, or finds slow. Contained means: the
verdict is a failure with fitness 0 (or, of a deed with a harmless reply, the reply's), nothing is
left outside of the job's folder, no process is left, and a good candidate is judged good after it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from benchmarks.machine import description
from kir.agent.evaluate import ChildEvaluator, Limits, Problem
from kir.agent.sandbox import available
from kir.agent.variant import derivation_text
from kir.ir import Kernel, Step, StepArg, walk
from kir.pipeline import LOOPS
from kir.rewrites import REWRITES
from kir.rewrites.base import Choice
from kir.specialise import specialise
from kir.syntax import parse_kernel

ROOT = Path(__file__).resolve().parents[1]
SOURCE = """kernel product[M, N, K](a: f32[M, K], b: f32[K, N]) -> (c: f32[M, N]) {
  c[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
}
"""
DIMS = {"M": 64, "N": 48, "K": 32}
ABSURD = (0, -1, 1, 3, 7, 1000, 1 << 12, 1 << 20, 1 << 31, 1 << 40)
LARGE = 2000
"""Nodes of IR beyond which a derivation is long enough: its jobs have the same to do again."""
DEED_LIMITS = Limits(seconds=2.0, memory=1 << 30, cpu_seconds=1, file=4 << 20)
REAL_LIMITS = Limits(seconds=6.0, memory=4 << 30, cpu_seconds=6, file=64 << 20)


def absurd(spec: Kernel, random: Random) -> str:
    """A derivation of moves that look legal, with numbers that are not."""
    from kir.errors import KirError
    from kir.pipeline import schedule

    steps: tuple[Step, ...] = LOOPS
    for _ in range(random.randrange(1, 5)):
        try:
            kernel = schedule(spec, steps)
        except KirError:
            break
        moves = [m for r in REWRITES.values() for m in r.candidates(kernel)]
        if not moves or sum(1 for _ in walk(kernel)) > LARGE:
            break
        move = random.choice(moves)
        values: dict[str, StepArg] = {
            name: random.choice(d.values) if isinstance(d, Choice) else random.choice(ABSURD)
            for name, d in move.domains
        }
        steps = (*steps, move.step(**values))
    return derivation_text(spec.name, steps)


def leftovers(before: set[str]) -> set[str]:
    """Files that a job left where it should not have."""
    return {str(p) for f in ("/tmp", "/var/tmp", "/dev/shm") for p in Path(f).glob("kir-was-here*")
            } - before  # fmt: skip


def deeds(count: int, random: Random) -> tuple[Counter[str], list[str]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from hostile_worker import DEEDS, HARMLESS

    command = (sys.executable, str(ROOT / "tests" / "hostile_worker.py"))
    problem = Problem("", "k", {}, "cpu", None, "native", "", 0)
    seen: Counter[str] = Counter()
    escaped: list[str] = []
    names = [name for name in DEEDS if name != "good"]
    with ChildEvaluator(problem, DEED_LIMITS, command) as evaluator:
        for _ in range(count):
            name = random.choice(names)
            found = evaluator.evaluate(name)
            seen[f"{name}: {found.status}"] += 1
            if found.fitness != 0 and name not in HARMLESS:
                escaped.append(f"{name} scored {found.fitness}")
            if name == "write outside" and "wrote in []" not in found.error:
                escaped.append(f"{name}: {found.error}")
            if evaluator.evaluate("good").status != "ok":
                escaped.append(f"after {name} a good one failed")
        place = str(evaluator.folder)
        time.sleep(1)
        escaped += [f"process {p.name} is left" for p in Path("/proc").iterdir()
                    if p.name.isdecimal() and _works_in(p, f"{place}/job-")]  # fmt: skip
    return seen, escaped


def _works_in(process: Path, place: str) -> bool:
    try:
        return str((process / "cwd").readlink()).startswith(place)
    except OSError:
        return False


def derivations(count: int, random: Random) -> tuple[Counter[str], list[str]]:
    spec = specialise(parse_kernel(SOURCE), DIMS)
    loops = derivation_text(spec.name, LOOPS)
    problem = Problem(SOURCE, spec.name, DIMS, "cpu", None, "native", loops, 0)
    seen: Counter[str] = Counter()
    escaped: list[str] = []
    with ChildEvaluator(problem, REAL_LIMITS, repeats=3) as evaluator:
        for number in range(count):
            text = absurd(spec, random)
            found = evaluator.evaluate(text)
            seen[found.status] += 1
            if number % 50 == 0:
                print(f"derivation {number}: {dict(seen)}", flush=True)
            if found.status != "ok" and found.fitness != 0:
                escaped.append(f"{found.status} scored {found.fitness}: {text}")
            if number % 20 == 0 and evaluator.evaluate(loops).status != "ok":
                escaped.append(f"after {text} canonical loops failed")
    return seen, escaped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    random = Random(given.seed)
    machine = description()
    before = leftovers(set())
    print(available().text(), "in", tempfile.gettempdir())
    started = time.monotonic()
    seen, escaped = deeds(given.count // 2, random)
    print(f"deeds: {dict(sorted(seen.items()))}, escaped {escaped}", flush=True)
    others, more = derivations(given.count - given.count // 2, random)
    escaped += [*more, *sorted(leftovers(before))]
    record = {
        "count": given.count,
        "seed": given.seed,
        "machine": machine,
        "confinement": available().text(),
        "seconds": round(time.monotonic() - started, 1),
        "deeds": dict(sorted(seen.items())),
        "derivations": dict(sorted(others.items())),
        "escaped": escaped,
    }
    print(json.dumps(record, indent=2))
    if given.json:
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
