"""kir check, fmt, show: what works on the text and the IR alone."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from kir.cli.common import (
    Arch,
    File,
    Json,
    KernelName,
    ScheduleName,
    Shape,
    TargetName,
    Via,
    choose,
    emit_json,
    locating,
    parse_shape,
    read_module,
    write_output,
)
from kir.errors import KirError, UsageError
from kir.ir import Graph, Kernel, Step
from kir.syntax import format_kernel, format_step


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command()(fmt)
    app.command()(show)


def check(
    files: Annotated[list[Path], typer.Argument(help=".kir files", show_default=False)],
    shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Parse, type, and prove bounds, races, promises and coverage; every error with its place."""
    records: list[dict[str, object]] = []
    code = 0
    for path in files:
        try:
            errors = _check_file(path, parse_shape(shape))
        except KirError as error:  # one bad file does not hide the errors of the next
            errors = [error]
        code = max([code, *(e.exit_code for e in errors)])
        for found in errors:
            records.append({"file": str(path), "error": type(found).__name__,
                            "message": found.message, "hint": found.hint})  # fmt: skip
            if not as_json:
                typer.echo(found.render() + "\n", err=True)
        if not errors and not as_json:
            typer.echo(f"{path}: ok")
    if as_json:
        emit_json({"ok": code == 0, "errors": records})
    if code:
        raise typer.Exit(code)


def _check_file(path: Path, dims: dict[str, int]) -> list[KirError]:
    from kir.check import check_module
    from kir.ir import Module
    from kir.specialise import specialise

    source, module = read_module(path)
    if dims:
        items = tuple(
            specialise(x, {d.name: dims[d.name] for d in x.dims if d.name in dims})
            if isinstance(x, Kernel)
            else x
            for x in module.items
        )
        module = Module(items)
    return check_module(module, source)


def fmt(
    files: Annotated[list[Path], typer.Argument(help=".kir files", show_default=False)],
    check_only: Annotated[bool, typer.Option("--check", help="change nothing; exit 1")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="print, change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite files as canonical text; comments stay."""
    from kir.syntax import format_source, load

    changed: list[str] = []
    for path in files:
        source = load(path)
        text = format_source(source)
        if stdout:
            typer.echo(text, nl=False)
        elif text != source.text:
            changed.append(str(path))
            if not check_only:
                write_output(path, text)
    if as_json:
        emit_json({"changed": changed})
    elif changed:
        verb = "would change" if check_only else "formatted"
        typer.echo("\n".join(f"{verb} {name}" for name in changed))
    if check_only and changed:
        raise typer.Exit(1)


def show(
    file: File,
    kernel: KernelName = None,
    target: TargetName = "cpu",
    via: Via = None,
    arch: Arch = None,
    stage: Annotated[str, typer.Option(help="spec, loops or scheduled")] = "scheduled",
    shape: Shape = None,
    schedule: ScheduleName = None,
    passes: Annotated[bool, typer.Option("--passes", help="the IR after every step")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="with --passes: only what changes")] = False,
    as_json: Json = False,
) -> None:
    """Print a kernel at a stage; with --passes, the derivation step by step."""
    from kir.derivation import replay
    from kir.pipeline import LOOPS, Target, choose_steps, is_scheduled
    from kir.specialise import specialise

    if stage not in ("spec", "loops", "scheduled"):
        raise UsageError(f"there is no stage `{stage}`", hint="spec, loops or scheduled")
    source, module = read_module(file)
    item = choose(module, kernel)
    kernels = [item] if isinstance(item, Kernel) else _called(item, module.kernels())
    texts, records = [], []
    for k in kernels:
        dims = {n: v for n, v in parse_shape(shape).items() if n in {d.name for d in k.dims}}
        steps: tuple[Step, ...] = ()
        with locating(source, schedule):
            k = specialise(k, dims) if dims or stage != "spec" else k
            if stage == "loops" and not is_scheduled(k):
                steps = LOOPS
            elif stage == "scheduled":
                steps = choose_steps(k, Target(target, via, arch), schedule, module)
            versions = [format_kernel(k)]
            versions += [format_kernel(after) for _, after in replay(k, steps)]
        names = ["spec", *map(format_step, steps)]
        records.append({"kernel": k.name, "passes": [
            {"step": n, "ir": v} for n, v in zip(names, versions)]})  # fmt: skip
        texts.append(_passes(names, versions, diff) if passes else versions[-1])
    if as_json:
        emit_json(records)
    else:
        typer.echo("\n".join(texts), nl=False)


def _called(graph: Graph, kernels: dict[str, Kernel]) -> list[Kernel]:
    return [kernels[name] for name in dict.fromkeys(c.kernel for c in graph.calls)]


def _passes(names: list[str], versions: list[str], diff: bool) -> str:
    out = [f"# {names[0]}\n{versions[0]}"]
    for name, before, after in zip(names[1:], versions, versions[1:]):
        body = after
        if diff:
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
            body = "\n".join(line for line in lines if line[:3] not in ("---", "+++")) + "\n"
        out.append(f"# {name}\n{body}")
    return "\n".join(out)
