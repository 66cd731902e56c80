"""kir rewrite on a graph: apply steps to it and its kernels, or list what is legal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from kir.cli.common import emit_json, write_output
from kir.derivation import Derivation, from_json
from kir.errors import ScheduleError, UsageError
from kir.graph_derivation import derive_graph, graph_effect, only, replay_graph
from kir.ir import Graph, Module, Step
from kir.pipeline import expand
from kir.rewrites import Move
from kir.rewrites.graph import GRAPH_REWRITES, legal_graph_moves
from kir.syntax import format_module, format_step, load, parse, parse_steps


@dataclass(frozen=True)
class Request:
    """What `kir rewrite` was asked for: the steps' texts, a schedule to begin with, the rewrites to
    list, and what to do with the result."""

    steps: tuple[str, ...]
    schedule: str | None
    only: str | None
    output: Path | None
    save: Path | None
    as_json: bool


def rewrite_graph(module: Module, graph: Graph, request: Request) -> None:
    """Print the graph with its kernels after the steps; with no step, list what is legal here."""
    before = _scheduled(module, graph, request.schedule)
    given = tuple(s for text in request.steps for s in parse_steps(text, "<step>"))
    stages = replay_graph(module, graph.name, (*before, *given))
    last = stages[-1][1] if stages else module
    if not given and request.save is None and request.output is None:
        _list(last, graph.name, request)
        return
    name = request.schedule or ""
    made = derive_graph(
        module, graph.name, (s for s, _ in stages), name if name.isidentifier() else "derived"
    )
    text = format_module(only(last, graph.name))
    if request.output is not None:
        write_output(request.output, text)
    if request.save is not None:
        write_output(request.save, made.json() if request.save.suffix == ".json" else made.text())
    if request.as_json:
        effect = graph_effect(module, graph.name, stages)
        emit_json({**made.record(), "effect": effect, "ir": text})
    elif request.output is None:
        typer.echo(text, nl=False)


def _scheduled(module: Module, graph: Graph, choice: str | None) -> tuple[Step, ...]:
    """The steps of a schedule of the file, or of a file that holds one of this graph."""
    if choice is None:
        return ()
    known = module.schedules()
    if choice in known:
        found = known[choice]
        if found.kernel != graph.name:
            raise ScheduleError(f"`{choice}` is a schedule of `{found.kernel}`, not of the graph")
        return expand(found, known)
    if not Path(choice).exists():
        listed = ", ".join(known) or "none in this file"
        raise ScheduleError(f"there is no schedule or file `{choice}`", hint=f"there is: {listed}")
    if choice.endswith(".json"):
        derivation: Derivation = from_json(load(choice).text)
        if derivation.kernel != graph.name:
            raise ScheduleError(f"{choice} derives `{derivation.kernel}`, not `{graph.name}`")
        return derivation.steps
    own = parse(load(choice)).schedules()
    mine = [s for s in own.values() if s.kernel == graph.name]
    if len(mine) != 1:
        raise ScheduleError(f"{choice} holds {len(mine)} schedules of `{graph.name}`, not one")
    return expand(mine[0], {**known, **own})


def _list(module: Module, graph: str, request: Request) -> None:
    names = [n.strip() for n in request.only.split(",")] if request.only else list(GRAPH_REWRITES)
    for name in names:
        if name not in GRAPH_REWRITES:
            listed = ", ".join(GRAPH_REWRITES)
            raise UsageError(f"graphs have no rewrite `{name}`", hint=f"there is: {listed}")
    moves = [m for m in legal_graph_moves(module, graph) if m.rewrite in names]
    if request.as_json:
        emit_json([{"rewrite": m.rewrite, "step": _spelled(m)} for m in moves])
        return
    typer.echo(f"{len(moves)} legal moves on the graph `{graph}`:")
    for move in moves:
        typer.echo(f"  {_spelled(move)}")
    kernels = ", ".join(dict.fromkeys(c.kernel for c in module.graphs()[graph].calls))
    typer.echo(f"and `within(KERNEL, REWRITE, ...)` on its kernels: {kernels}")


def _spelled(move: Move) -> str:
    """The step as it is written: what a move of a graph fixes are its first arguments."""
    return format_step(Step(move.rewrite, tuple(value for _, value in move.fixed)))
