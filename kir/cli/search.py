"""kir tune, replay: the search from the command line."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kir.cli.common import (
    Arch,
    File,
    Json,
    KernelName,
    Shape,
    TargetName,
    Via,
    choose,
    complete_shape,
    emit_json,
    parse_shape,
    read_module,
)
from kir.errors import UsageError, VerificationError
from kir.ir import Kernel
from kir.syntax import format_kernel

if TYPE_CHECKING:
    from kir.agent.search import Event
    from kir.agent.tune import Result

DEFAULT_DIM = 512
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def register(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(replay)


def parse_budget(text: str) -> float:
    """`30s`, `10m`, `1.5h` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"`{text}` is no budget", hint="write 30s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def tune(
    file: File,
    target: TargetName = "cpu",
    via: Via = None,
    arch: Arch = None,
    kernel: KernelName = None,
    shape: Shape = None,
    budget: Annotated[str, typer.Option(help="wall-clock time, like 30s or 10m")] = "60s",
    evaluations: Annotated[int | None, typer.Option(min=1, help="at most so many")] = None,
    store: Annotated[str, typer.Option(help="database URL")] = "sqlite:///kir-tune.db",
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the latest run")] = False,
    start: Annotated[str, typer.Option(help="begin at `default` or `loops`")] = "default",
    policy: Annotated[str, typer.Option(help="greedy, beam, mcts, evolutionary, random")] = "mcts",
    proposer: Annotated[str, typer.Option(help="rules, or openai: a language model")] = "rules",
    workers: Annotated[int, typer.Option(min=1, help="evaluations at a time")] = 1,
    executor: Annotated[str, typer.Option(help="local, or ray")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster")] = None,
    stall: Annotated[
        int | None, typer.Option(min=1, help="end after so many without a new best")
    ] = None,
    until: Annotated[float | None, typer.Option(help="end at so many times the default")] = None,
    as_json: Json = False,
) -> None:
    """Search for a faster schedule; print its derivation. Every variant tried is in the store."""
    from kir.agent.tune import tune as search

    seconds = parse_budget(budget)
    _, module = read_module(file)
    item = choose(module, kernel)
    if not isinstance(item, Kernel):
        names = ", ".join(module.kernels())
        raise UsageError("a search tunes one kernel, not a graph", hint=f"--kernel: {names}")
    dims = complete_shape(item, parse_shape(shape), DEFAULT_DIM)
    display = None if as_json else _display(seconds)
    try:
        found = search(
            item, dims, target, via=via, arch=arch, budget_s=seconds, evaluations=evaluations,
            store=store, seed=seed, resume=resume, start=start, policy=policy, proposer=proposer,
            workers=workers, executor=executor, address=address, stall=stall, fitness=until,
            on_event=display.show if display else None,
        )  # fmt: skip
    finally:
        if display:
            display.close()
    if as_json:
        emit_json(_record(found))
        return
    _print(found, store)


class _Display:
    """Progress on a terminal: one line that changes. In a pipe: a line for each improvement."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        self.best = 0.0
        self.progress: Any = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.progress.start()
            self.task = self.progress.add_task("tuning", total=seconds)

    def show(self, event: Event) -> None:
        best = event.best.fitness if event.best else 0.0
        text = f"{event.evaluated} evaluated, best {best:.2f}x the default"
        if self.progress is not None:
            self.progress.update(self.task, completed=event.elapsed, description=text)
        elif best > self.best:
            print(f"{event.elapsed:6.1f} s  {text}", file=sys.stderr)
        self.best = max(self.best, best)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def _display(seconds: float) -> _Display:
    return _Display(seconds)


def _record(found: Result) -> dict[str, Any]:
    return {
        "run": found.run, "node": found.node, "derivation": found.derivation,
        "seconds": found.seconds, "baseline_seconds": found.baseline_seconds,
        "speedup": found.speedup, "statuses": dict(found.statuses),
        "proposals": dict(found.proposals), "evaluations": found.evaluations,
        "elapsed": found.elapsed, "interrupted": found.interrupted, "spent": dict(found.spent),
    }  # fmt: skip


def _print(found: Result, store: str) -> None:
    statuses = ", ".join(f"{n} {name}" for name, n in found.statuses.items())
    typer.echo(found.derivation.rstrip())
    typer.echo(
        f"\n{found.seconds * 1e3:.3f} ms, {found.speedup:.2f}x the default schedule's "
        f"{found.baseline_seconds * 1e3:.3f} ms (re-timed on fresh inputs)"
    )
    typer.echo(f"{found.evaluations} evaluations in {found.elapsed:.0f} s: {statuses}")
    typer.echo(f"kir replay {store} {found.node}  # rebuilds and verifies it")
    if found.interrupted:
        typer.echo("interrupted: --resume goes on", err=True)


def replay(
    store: Annotated[str, typer.Argument(help="database URL", show_default=False)],
    node: Annotated[int, typer.Argument(help="the variant's id", show_default=False)],
    seed: Annotated[int, typer.Option(help="of the fresh inputs")] = 1,
    as_json: Json = False,
) -> None:
    """Rebuild a variant from its derivation, and verify and time it again."""
    from kir.agent.tune import replay as rebuild

    found = rebuild(store, node, seed=seed)
    verdict = found.verdict
    if as_json:
        emit_json({
            "node": found.node.id, "derivation": found.node.derivation,
            "ir": format_kernel(found.kernel), "status": verdict.status, "error": verdict.error,
            "seconds": verdict.seconds, "baseline_seconds": verdict.baseline_seconds,
        })  # fmt: skip
    else:
        typer.echo(found.node.derivation.rstrip() + "\n")
        typer.echo(format_kernel(found.kernel))
    if verdict.status != "ok":
        raise VerificationError(f"node {node} does not hold: {verdict.status}", hint=verdict.error)
    if not as_json and verdict.seconds and verdict.baseline_seconds:
        typer.echo(
            f"verified; {verdict.seconds * 1e3:.3f} ms, "
            f"{verdict.baseline_seconds / verdict.seconds:.2f}x the default schedule"
        )
