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
    emit_json,
    read_module,
)


def register(app: typer.Typer) -> None:
    app.command()(verify)
