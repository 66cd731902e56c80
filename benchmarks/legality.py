"""How long a search waits for an answer: is this step legal here, and what does it lead to?

On kernels along a derivation of attention (the default schedule of a target, or a schedule of the
file), every move that any rewrite offers is judged (`refusal`: the precondition and the edit) and,
where legal, applied (`apply`: the edit and the simplification). What is known of a node is kept on
it, so the first question about a kernel costs more than the next; here each kernel is made anew,
with nothing known, and then asked everything once, as a search would. Times are processor time of
the thread, which other work on the machine hardly adds to.

    python -m benchmarks.legality [--kernel examples/attention.kir] [--schedule nvidia]
                                  [--stages 3] [--repeat 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kir.derivation import replay
from kir.ir import Kernel, Node, Step, rebuild
from kir.pipeline import Target, choose_steps
from kir.rewrites import REWRITES, make_rewrite, refusal
from kir.rewrites.base import statements
from kir.specialise import specialise
from kir.syntax import load, parse


@dataclass(frozen=True)
class Row:
    """Times in milliseconds: of the median, the slowest in twenty and the slowest question, and
    of the median and slowest application."""

    rewrite: str
    questions: int
    legal: int
    ask: float
    ask_95: float
    ask_most: float
    apply: float
    apply_most: float


def anew(kernel: Kernel) -> Kernel:
    """A copy of which nothing is known yet."""

    def copied(node: Node) -> Node:
        return replace(rebuild(node, copied))

    done = copied(kernel)
    assert isinstance(done, Kernel)
    return done


def clock(kernel: Kernel, step: Step) -> tuple[float, float | None]:
    """Milliseconds to judge a step, and to apply it where it is legal."""
    start = time.thread_time()
    refused = refusal(kernel, step)
    asked = time.thread_time() - start
    if refused is not None:
        return asked * 1e3, None
    rewrite = make_rewrite(step)
    start = time.thread_time()
    rewrite.apply(kernel)
    return asked * 1e3, (time.thread_time() - start) * 1e3


def measure(kernels: list[Kernel], repeat: int) -> list[Row]:
    """One row for each rewrite that offers something, and one for all together."""
    asked: dict[str, list[float]] = {}
    applied: dict[str, list[float]] = {}
    for original in kernels:
        runs: dict[tuple[str, Step], list[tuple[float, float | None]]] = {}
        for _ in range(repeat):
            kernel = anew(original)
            for name, rewrite in REWRITES.items():
                for move in rewrite.candidates(kernel):
                    runs.setdefault((name, move.step()), []).append(clock(kernel, move.step()))
        for (name, _), times in runs.items():
            asked.setdefault(name, []).append(statistics.median(t for t, _ in times))
            done = [t for _, t in times if t is not None]
            if done:
                applied.setdefault(name, []).append(statistics.median(done))
    rows = [_row(name, asked[name], applied.get(name, [])) for name in asked]
    every = [t for times in asked.values() for t in times]
    return [*rows, _row("all", every, [t for times in applied.values() for t in times])]


def _row(name: str, asked: list[float], applied: list[float]) -> Row:
    ordered = sorted(asked)
    return Row(
        name,
        len(asked),
        len(applied),
        statistics.median(asked),
        ordered[int(0.95 * (len(ordered) - 1))],
        ordered[-1],
        statistics.median(applied) if applied else 0.0,
        max(applied, default=0.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="examples/attention.kir")
    parser.add_argument("--schedule", default="nvidia", help="a target or a schedule")
    parser.add_argument("--stages", type=int, default=3, help="how many kernels on the way")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    module = parse(load(given.kernel))
    kernel = next(iter(module.kernels().values()))
    kernel = specialise(kernel, {d.name: d.default for d in kernel.dims if d.default is not None})
    start = time.thread_time()
    if given.schedule in module.schedules():
        steps = choose_steps(kernel, Target("cpu"), given.schedule, module)
    else:
        steps = choose_steps(kernel, Target(given.schedule))
    chosen = time.thread_time() - start
    start = time.thread_time()
    stages = [k for _, k in replay(kernel, steps)]
    replayed = time.thread_time() - start
    at = [len(stages) * (n + 1) // given.stages - 1 for n in range(given.stages)]
    kernels = [stages[k] for k in at]
    sizes = [sum(1 for _ in statements(k.body)) for k in kernels]
    rows = measure(kernels, given.repeat)
    print(
        f"{kernel.name}, {given.schedule}: {len(steps)} steps, chosen in {chosen:.2f} s, "
        f"replayed in {replayed:.2f} s; kernels of {', '.join(map(str, sizes))} statements"
    )
    heads = ("rewrite", "asked", "legal", "ms to judge", "95%", "most", "ms to apply", "most")
    print("{:18}{:>7}{:>7}{:>13}{:>8}{:>8}{:>13}{:>8}".format(*heads))
    for r in rows:
        print("{:18}{:7}{:7}{:13.2f}{:8.2f}{:8.2f}{:13.2f}{:8.2f}".format(*asdict(r).values()))
    if given.json:
        found = {
            "kernel": kernel.name,
            "schedule": given.schedule,
            "steps": len(steps),
            "chosen_s": chosen,
            "replayed_s": replayed,
            "statements": sizes,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "rows": [asdict(r) for r in rows],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
