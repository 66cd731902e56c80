"""kir verify: property-based verification from the command line."""

from __future__ import annotations

from pathlib import Path
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
    regressions: Annotated[
        Path | None,
        typer.Option(
            help="folder of kept failures [default: .kir/regressions beside the file]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show that a kernel, its derivation and a target agree, rung by rung: statically, bit for bit
    in a ring, on random shapes and hard values, on the target. A .json file is a kept failure:
    it is tried again."""
    from kir.regressions import FOLDER, read
    from kir.verify import replay
    from kir.verify import verify as prove

    if file.suffix == ".json":
        report = replay(read(file))
    else:
        _, module = read_module(file)
        item = choose(module, kernel)
        report = prove(
            item, module=module, target=target, via=via, arch=arch, schedule=schedule,
            examples=examples, seed=seed, path=str(file),
            regressions=regressions or file.parent / FOLDER,
        )  # fmt: skip
    if as_json:
        emit_json(report.record())
    else:
        typer.echo(report.text())
