"""kir rewrite: apply steps to a kernel, or list what is legal on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kir.cli.common import (
    File,
    Json,
    KernelName,
    Shape,
    choose,
    emit_json,
    locating,
    parse_shape,
    read_module,
    write_output,
)
from kir.errors import UsageError
from kir.ir import Kernel
from kir.syntax import format_kernel


def register(app: typer.Typer) -> None:
    app.command()(rewrite)


def rewrite(
    file: File,
    steps: Annotated[
        list[str] | None,
        typer.Argument(help="steps like 'split(i, 8)'; none: list what is legal"),
    ] = None,
    kernel: KernelName = None,
    shape: Shape = None,
    schedule: Annotated[
        str | None, typer.Option(help="a schedule (name or file) to apply before the steps")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="list moves of these rewrites only, like split,fuse")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="show each step as a diff")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the kernel as it is after")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="write the derivation: .json, else as a schedule")
    ] = None,
    as_json: Json = False,
) -> None:
    """Apply rewrites and print the kernel after them; with no step, list what is legal here."""
    from kir.cli.moves import diffs, list_moves, parsed
    from kir.derivation import derive, effect_of, replay
    from kir.pipeline import choose_steps
    from kir.specialise import specialise

    source, module = read_module(file)
    item = choose(module, kernel)
    if not isinstance(item, Kernel):
        from kir.cli.rewrite_graph import Request, rewrite_graph

        if shape or diff:
            message = f"`{item.name}` is a graph: --shape and --diff are for kernels"
            raise UsageError(message, hint="--kernel names one of its kernels")
        request = Request(tuple(steps or ()), schedule, only, output, save, as_json)
        with locating(source, schedule):
            rewrite_graph(module, item, request)
        return
    dims = parse_shape(shape)
    with locating(source, schedule):
        start = specialise(item, dims)  # parameters bound, as schedules find them
        before = choose_steps(start, _no_target(), schedule, module) if schedule else ()
        given = parsed(steps or [])
        if not given and save is None and output is None:
            here = replay(start, before)
            list_moves(here[-1][1] if here else start, only, as_json)
            return
        stages = replay(start, (*before, *given))
    made = derive(start, (s for s, _ in stages), _name_of(schedule))
    last = stages[-1][1] if stages else start
    if output is not None:
        write_output(output, format_kernel(last))
    if save is not None:
        write_output(save, made.json() if save.suffix == ".json" else made.text())
    if as_json:
        record = {**made.record(), "effect": effect_of(start, stages), "ir": format_kernel(last)}
        emit_json(record)
    elif diff:
        typer.echo(diffs(start, stages), nl=False)
    elif output is None:
        typer.echo(format_kernel(last), nl=False)


def _name_of(schedule: str | None) -> str:
    """What to call a derivation that goes on from a schedule."""
    named = schedule and schedule.isidentifier() and schedule != "none"
    return schedule if schedule and named else "derived"


def _no_target() -> Any:
    """A named schedule or a file is the same for every target."""
    from kir.pipeline import Target

    return Target("cpu")
