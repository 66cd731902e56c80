"""kir rewrite: apply steps to a kernel, or list what is legal on it."""

from __future__ import annotations

import difflib
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
from kir.errors import ScheduleError, Source, UsageError
from kir.ir import Kernel, Step
from kir.rewrites import REWRITES, Choice, Domain, Move, canonical, legal_moves, make_rewrite
from kir.syntax import format_kernel, format_step, parse_steps


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
    from kir.derivation import derive, effect_of, replay
    from kir.pipeline import choose_steps
    from kir.specialise import specialise

    source, module = read_module(file)
    item = choose(module, kernel)
    if not isinstance(item, Kernel):
        if shape or diff:
            raise UsageError(
                f"`{item.name}` is a graph: --shape and --diff are for kernels",
                hint="--kernel names one of its kernels",
            )
        from kir.cli.rewrite_graph import Request, rewrite_graph

        request = Request(tuple(steps or ()), schedule, only, output, save, as_json)
        with locating(source, schedule):
            rewrite_graph(module, item, request)
        return
    dims = parse_shape(shape)
    with locating(source, schedule):
        start = specialise(item, dims) if dims else item
        before = choose_steps(start, _no_target(), schedule, module) if schedule else ()
        given = _parsed(steps or [])
        if not given and save is None and output is None:
            here = replay(start, before)
            _list(here[-1][1] if here else start, only, as_json)
            return
        stages = replay(start, (*before, *given))
    last = stages[-1][1] if stages else start
    name = schedule if schedule and schedule.isidentifier() and schedule != "none" else "derived"
    made = derive(start, (s for s, _ in stages), name)
    if output is not None:
        write_output(output, format_kernel(last))
    if save is not None:
        write_output(save, made.json() if save.suffix == ".json" else made.text())
    if as_json:
        record = {**made.record(), "effect": effect_of(start, stages), "ir": format_kernel(last)}
        emit_json(record)
    elif diff:
        typer.echo(_diffs(start, stages), nl=False)
    elif output is None:
        typer.echo(format_kernel(last), nl=False)


def _no_target() -> Any:
    """A named schedule or a file is the same for every target."""
    from kir.pipeline import Target

    return Target("cpu")


def _parsed(texts: list[str]) -> tuple[Step, ...]:
    """The steps in the arguments; an error underlines the argument."""
    found: list[Step] = []
    for text in texts:
        steps = parse_steps(text, "<step>")
        for step in steps:
            try:
                make_rewrite(step)
            except ScheduleError as error:
                raise error.at(source=Source("<step>", text)) from None
        found.extend(steps)
    return tuple(found)


def _diffs(start: Kernel, stages: list[tuple[Step, Kernel]]) -> str:
    parts, before = [], format_kernel(start)
    for step, kernel in stages:
        after = format_kernel(kernel)
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
        changed = [line for line in lines if line[:3] not in ("---", "+++")]
        parts.append("\n".join([f"# {format_step(canonical(step))}", *changed]) + "\n")
        before = after
    return "\n".join(parts)


# --- what is legal -----------------------------------------------------------------------------


def _list(kernel: Kernel, only: str | None, as_json: bool) -> None:
    names = [n.strip() for n in only.split(",")] if only else list(REWRITES)
    for name in names:
        if name not in REWRITES:
            near = difflib.get_close_matches(name, REWRITES, n=3) or list(REWRITES)
            raise UsageError(f"there is no rewrite `{name}`", hint="there is: " + ", ".join(near))
    groups = {name: legal_moves(kernel, [name]) for name in names}
    if as_json:
        emit_json([_record(kernel, move) for moves in groups.values() for move in moves])
        return
    total = sum(map(len, groups.values()))
    typer.echo(f"{total} legal moves on `{kernel.name}`, `...` standing for any legal value:")
    for name, moves in groups.items():
        if moves:
            effects = dict.fromkeys(make_rewrite(m.step()).effect_on(kernel) for m in moves)
            typer.echo(f"\n{name} ({' or '.join(effects)}): {_summary(name)}")
            for move in moves:
                typer.echo(f"  {_spelled(move)}")


def _summary(name: str) -> str:
    """The first sentence of a rewrite's docstring, after its form."""
    doc = " ".join((REWRITES[name].__doc__ or "").split("\n\n")[0].split())
    _, _, rest = doc.partition("`: ")
    return rest or doc


def _spelled(move: Move) -> str:
    step = canonical(move.step())
    if not move.domains:
        return format_step(step)
    open_ = "; ".join(f"{name}: {_domain(domain)}" for name, domain in move.domains)
    return f"{format_step(step)}    {open_}"


def _domain(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return " or ".join(map(str, domain.values))
    high = "..." if domain.high is None else str(domain.high)
    return f"{domain.low} to {high}"


def _record(kernel: Kernel, move: Move) -> dict[str, Any]:
    domains = {
        name: {"values": list(d.values)}
        if isinstance(d, Choice)
        else {"low": d.low, "high": d.high, "tries": list(d.tries)}
        for name, d in move.domains
    }
    return {
        "rewrite": move.rewrite,
        "effect": make_rewrite(move.step()).effect_on(kernel),
        "step": format_step(canonical(move.step())),
        "fixed": dict(move.fixed),
        "domains": domains,
    }
