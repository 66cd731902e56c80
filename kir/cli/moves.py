"""What kir rewrite prints: steps as diffs, and the moves that are legal. Loaded on demand."""

from __future__ import annotations

import difflib
from typing import Any

import typer

from kir.cli.common import emit_json
from kir.errors import ScheduleError, Source, UsageError
from kir.ir import Kernel, Step
from kir.rewrites import REWRITES, Choice, Domain, Move, canonical, legal_moves, make_rewrite
from kir.syntax import format_kernel, format_step, parse_steps


def parsed(texts: list[str]) -> tuple[Step, ...]:
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


def diffs(start: Kernel, stages: list[tuple[Step, Kernel]]) -> str:
    parts, before = [], format_kernel(start)
    for step, kernel in stages:
        after = format_kernel(kernel)
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
        changed = [line for line in lines if line[:3] not in ("---", "+++")]
        parts.append("\n".join([f"# {format_step(canonical(step))}", *changed]) + "\n")
        before = after
    return "\n".join(parts)


# --- what is legal -----------------------------------------------------------------------------


def list_moves(kernel: Kernel, only: str | None, as_json: bool) -> None:
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
