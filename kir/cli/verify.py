"""kir verify: property-based verification from the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from kir.cli.common import (
    Arch,
    File,
    Json,
    KernelName,
    ScheduleName,
    Via,
    choose,
    emit_json,
    read_module,
)


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    file: File,
    kernel: KernelName = None,
    target: Annotated[
        str | None, typer.Option(help="also run on this target (Triton: its interpreter)")
    ] = None,
    via: Via = None,
    arch: Arch = None,
    schedule: ScheduleName = None,
    examples: Annotated[int, typer.Option(min=1, help="shapes and inputs to try")] = 20,
    seed: Annotated[int, typer.Option(help="of the examples")] = 0,
    as_json: Json = False,
) -> None:
    """Show that a kernel, its schedule and a target agree, on random shapes and hard values."""
    from kir.verify import verify as prove

    _, module = read_module(file)
    item = choose(module, kernel)
    report = prove(
        item, module=module, target=target, via=via, arch=arch, schedule=schedule,
        examples=examples, seed=seed, path=str(file),
    )  # fmt: skip
    if as_json:
        emit_json(report.record())
    else:
        typer.echo(report.text())
