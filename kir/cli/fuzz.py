"""kir fuzz: random kernels and derivations against the oracle, the ring and the backends."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kir.cli.common import Json, emit_json
from kir.errors import KirError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from kir.fuzz.campaign import Summary

PLAIN_LINES = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def register(app: typer.Typer) -> None:
    app.command()(fuzz)


def fuzz(
    target: Annotated[
        list[str] | None,
        typer.Option(help="interpreter (the default), cpu, accel, nvidia, amd; may be repeated"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="run for this long")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="run this many pairs on each target")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the kernels and derivations")] = 0,
    first: Annotated[int, typer.Option(min=0, help="number of the first kernel")] = 0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="collect distinct failures")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; one for each core")] = None,
    regressions: Annotated[
        Path | None, typer.Option(help="folder of failures, replayed first; else .kir/fuzz")
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(help="judge a saved failure again, and nothing else")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run random kernels and random legal derivations of them, and compare with what they mean.

    Without --minutes and --count it runs for a minute. Stops at the first failure, shrunk and
    saved, unless --keep-going.
    """
    if replay:
        _replay(replay, as_json)
        return
    from kir.backend import get_backend
    from kir.fuzz.campaign import FOLDER, Campaign, Plan
    from kir.fuzz.cases import INTERPRETER

    targets = tuple(dict.fromkeys(target or [INTERPRETER]))
    for name in targets:
        if name != INTERPRETER:
            get_backend(name)
    plan = Plan(
        targets, seed, count, 1.0 if minutes is None and count is None else minutes,
        jobs or os.cpu_count() or 1, keep_going, first, regressions or FOLDER,
    )  # fmt: skip
    with ExitStack() as stack:
        summary = Campaign(plan, _progress(stack, as_json)).run()
    if as_json:
        emit_json(summary.record())
    else:
        for found in summary.found.values():
            typer.echo(found.text() + "\n")
        typer.echo("\n".join(summary.lines()))
    if summary.found:
        raise typer.Exit(1)
    if summary.ended == "interrupted":
        raise typer.Exit(130)


def _replay(paths: list[Path], as_json: bool) -> None:
    from kir.fuzz.cases import read_case
    from kir.fuzz.session import judge_case

    failed, records = False, []
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no file {path}")
        case = read_case(path)
        try:
            failure = judge_case(case)
            what = failure.message if failure else "holds"
        except KirError as error:
            failure, what = None, f"no longer applies: {error.message}"
        failed = failed or failure is not None
        records.append({"file": str(path), "failed": failure is not None, "message": what})
        if not as_json:
            typer.echo(f"{path}: {failure.key if failure else what}")
            if failure:
                typer.echo(f"{failure.message}\n{case.text()}\n")
    if as_json:
        emit_json(records)
    if failed:
        raise typer.Exit(1)


# --- progress ------------------------------------------------------------------------------------


def _progress(stack: ExitStack, quiet: bool) -> Callable[[Summary], None]:
    """What shows a summary as it grows: a live table, or a line now and then; on stderr."""
    if quiet:
        return lambda summary: None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        live = stack.enter_context(Live(console=Console(stderr=True), refresh_per_second=4))
        return lambda summary: live.update(_table(summary))
    last = [time.monotonic()]

    def line(summary: Summary) -> None:
        if time.monotonic() - last[0] >= PLAIN_LINES:
            last[0] = time.monotonic()
            print(_line(summary), file=sys.stderr, flush=True)

    return line


def _line(summary: Summary) -> str:
    each = ", ".join(f"{t} {c['pairs']} pairs" for t, c in summary.counts.items())
    rate = summary.pairs / summary.seconds if summary.seconds else 0.0
    met = summary.coverage.summary()
    share = ", ".join(f"{name} {m['met']}/{m['of']}" for name, m in met.items())
    failures = f"{len(summary.found)} distinct failures"
    return f"{summary.seconds:.0f} s: {each}, {rate:.1f} pairs/s; {failures}; {share}"


def _table(summary: Summary) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"kir fuzz, seed {summary.plan.seed}, {summary.seconds:.0f} s")
    for column in ("target", "pairs", "pairs/s", "kernels", "rejected"):
        table.add_column(column, justify="right" if column != "target" else "left")
    for name, c in summary.counts.items():
        rate = c["pairs"] / summary.seconds if summary.seconds else 0.0
        table.add_row(
            name, str(c["pairs"]), f"{rate:.1f}", str(c["kernels"]),
            str(c["rejected"] + c["vacuous"]),
        )  # fmt: skip
    met = summary.coverage.summary()
    table.caption = (
        f"[{'red' if summary.found else 'green'}]{len(summary.found)} distinct failures[/]; "
        + ", ".join(f"{name} {m['met']} of {m['of']}" for name, m in met.items())
    )
    return table
