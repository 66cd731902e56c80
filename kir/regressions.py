"""Failures that were found once, kept as files, and tried first the next time.

One JSON file for each: the program, the derivation, the target and the example. It is written
whole or not at all, and when read it is untrusted: sizes are limited, every part is checked, and
nothing is evaluated.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kir.derivation import Derivation, from_record, step_record
from kir.errors import InputDataError, KirError, OutputError
from kir.ir import Graph, Kernel, Module, Step
from kir.syntax import format_module, parse
from kir.testing import PROFILES, WORK, Example

FORMAT = "kir-regression-1"
FOLDER = Path(".kir") / "regressions"
"""Beside the file that is verified, unless another is named."""
LARGEST = 1 << 20
"""Bytes of a file at most."""
MOST = 1000
"""Files of a folder that are read at most."""


@dataclass(frozen=True)
class Regression:
    """A failure: `item` of `module` under `steps`, on a target or, without one, the interpreter.

    `steps` are those of the item's own kernel; None for a graph, whose kernels take the target's
    default schedule, and for a kernel that was wrong as it is written.
    """

    module: Module
    item: str
    rung: str
    message: str
    example: Example
    steps: tuple[Step, ...] | None = None
    target: str | None = None
    via: str | None = None
    arch: str | None = None

    @property
    def program(self) -> Kernel | Graph:
        found = self.module.kernels().get(self.item)
        return found if found is not None else self.module.graphs()[self.item]

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        steps = self.steps
        derivation = None
        if steps is not None:
            derivation = Derivation(self.item, tuple(steps), "failing").record()
        return {
            "format": FORMAT,
            "item": self.item,
            "rung": self.rung,
            "message": self.message,
            "example": {
                "dims": dict(self.example.dims),
                "profile": self.example.profile,
                "seed": self.example.seed,
            },
            "target": self.target,
            "via": self.via,
            "arch": self.arch,
            "derivation": derivation,
            "program": format_module(self.module).splitlines(),
        }

    def name(self) -> str:
        """The file's name: equal failures share it."""
        steps = [step_record(s) for s in self.steps or ()]
        parts = [self.item, self.rung, self.target, dict(self.example.dims), steps]
        text = json.dumps([*parts, format_module(self.module)], sort_keys=True)
        return f"{self.item}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def save(self, folder: Path) -> Path:
        """Write it to a folder, which is made; OutputError where that fails."""
        path = folder / self.name()
        text = json.dumps(self.record(), indent=2) + "\n"
        temporary: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise OutputError(
                f"{path}: {error.strerror}", hint="name a folder that you may write to"
            ) from None
        return path


def from_data(data: Any) -> Regression:
    """What plain data describes; InputDataError (or a parse error) where it does not fit."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputDataError(
            "this JSON is no kept failure", hint=f'it begins with "format": "{FORMAT}"'
        )
    lines = data.get("program")
    if not isinstance(lines, list) or not all(isinstance(x, str) for x in lines):
        raise InputDataError('"program" is no list of lines')
    module = parse("\n".join(lines))
    words = {n: data.get(n) for n in ("item", "rung", "message", "target", "via", "arch")}
    for name, word in words.items():
        optional = word is None and name in ("target", "via", "arch")
        if not optional and not isinstance(word, str):
            raise InputDataError(f'"{name}" is no text')
    if words["item"] not in {**module.kernels(), **module.graphs()}:
        raise InputDataError('"item" is no kernel or graph of the program')
    derivation = data.get("derivation")
    steps = None if derivation is None else from_record(derivation).steps
    return Regression(module, example=_example(data.get("example")), steps=steps, **words)  # type: ignore[arg-type]


def _example(data: Any) -> Example:
    dims = data.get("dims") if isinstance(data, dict) else None
    if not isinstance(dims, dict) or not all(
        type(v) is int and 0 <= v <= WORK for v in dims.values()
    ):
        raise InputDataError('"dims" are no sizes', hint=f"each is a whole number up to {WORK}")
    points = 1
    for v in dims.values():
        points *= max(v, 1)
    profile, seed = data.get("profile"), data.get("seed")
    if points > WORK or profile not in PROFILES or type(seed) is not int or not 0 <= seed < 1 << 32:
        raise InputDataError(
            '"example" is none', hint=f"its profile is one of {', '.join(PROFILES)}"
        )
    return Example(tuple(dims.items()), profile, seed)


def read(path: Path) -> Regression:
    """The failure that a file holds; InputDataError where it holds none."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputDataError(f"{path} is larger than {LARGEST} bytes")
        return from_data(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputDataError(f"{path} is no JSON that can be read: {error}") from None


def read_all(folder: Path) -> Iterator[tuple[Path, Regression | KirError]]:
    """The failures in a folder by name; for a file that holds none, why not."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    for path in paths[:MOST]:
        try:
            yield path, read(path)
        except KirError as error:
            yield path, error
