"""Machine files: what is right is read, what is wrong is named."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kir.backends.accel import simulator, toolchain
from kir.backends.accel.machine import MACHINES, Machine, find, known, load
from kir.dtypes import bf16, f32, i8
from kir.errors import FileError, KirError, UsageError

REFERENCE = (MACHINES / "reference.toml").read_text(encoding="utf-8")


def machine(tmp_path: Path, text: str) -> Machine:
    path = tmp_path / "m.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_reference_machine() -> None:
    m = find("reference")
    assert m.name == "reference" and known()[0] == "reference"
    assert m.pe_count == 64
    assert m.core.triple == "riscv64-unknown-elf"
    engine = m.engine(bf16, bf16, f32)
    assert engine is not None and (engine.m, engine.n, engine.k) == (32, 32, 32)
    assert m.engine(i8, i8, f32) is None
    assert [x.name for x in m.memory] == ["sram", "dram"]


def test_a_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(REFERENCE.replace('name = "reference"', 'name = "mine"'), encoding="utf-8")
    assert find(str(path)).name == "mine"


def edited(pattern: str, new: str) -> str:
    text, count = re.subn(pattern, new, REFERENCE, count=1, flags=re.MULTILINE)
    assert count == 1
    return text


WRONG = {
    "missing field": (edited(r"^rows = 8\n", ""), r"`\[grid\] rows` is missing"),
    "missing table": (edited(r"^\[dma\]", "[dmas]"), r"`dmas` is not a field"),
    "unknown field": (edited(r"^rows = 8", "rows = 8\nrow = 1"), r"`\[grid\] row` is not a field"),
    "not an integer": (edited(r"^rows = 8", 'rows = "8"'), r"`\[grid\] rows` is '8', not an int"),
    "a bool is no integer": (edited(r"^rows = 8", "rows = true"), r"is True, not an integer"),
    "out of range": (edited(r"^rows = 8", "rows = 0"), r"is 0; it must lie between 1 and 1024"),
    "no power of two": (
        edited(r"^vector_bits = 512", "vector_bits = 500"),
        r"`\[core\] vector_bits` is 500, not a power of two",
    ),
    "size and alignment": (
        edited(r"^bytes = 393216", "bytes = 393217"),
        r"`\[local\] bytes` is 393217, no multiple of the alignment 64",
    ),
    "rate": (
        edited(r"^clock_mhz = 1350", "clock_mhz = -1"),
        r"`\[grid\] clock_mhz` is -1; it must",
    ),
    "feature": (edited(r'"\+m"', '"m"'), r"`\[core\] features` is 'm', which does not match"),
    "features": (edited(r"^features = .*", 'features = "+m"'), r"not a list of strings"),
    "code model": (edited(r'"medium"', '"huge"'), r"`\[core\] code_model` is `huge`"),
    "dtype": (edited(r'^a = "bf16"', 'a = "bf17"'), r"`\[\[matrix\]\] 1: a` is `bf17`, no dtype"),
    "engine": (edited(r'^acc = "f32"', 'acc = "f64"'), r"bf16 x bf16 -> f64, which the run-time"),
    "twice": (
        edited(r'^a = "f16"\nb = "f16"', 'a = "bf16"\nb = "bf16"'),
        r"has two entries for bf16",
    ),
    "table": (edited(r"^\[grid\]\n(.*\n){3}", "grid = 3\n"), r"`grid` "),
    "name": (
        edited(r'^name = "reference"', 'name = "a b"'),
        r"`name` is 'a b', which does not match",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_named(tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(UsageError, match=message) as raised:
        machine(tmp_path, text)
    assert str(tmp_path) in raised.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"a = ", "not TOML"), (b"#" * (2 << 20), "larger than")],
)
def test_files_that_are_no_toml(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(data)
    with pytest.raises(FileError, match=message):
        load(path)


def test_no_such_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown accelerator `mtia9`"):
        find("mtia9")
    with pytest.raises(FileError, match="cannot be read"):
        find(str(tmp_path / "none.toml"))
    with pytest.raises(FileError, match="cannot be read"):
        find(f"{tmp_path}/x\0.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triple": "z80-unknown-none"}, "does not know the triple"),
        ({"features": ("+m", "+zvl511b")}, "does not know the RISC-V feature `\\+zvl511b`"),
        ({"triple": "riscv32-unknown-elf", "cpu": "generic-rv32", "abi": ""}, "no 64-bit"),
    ],
)
def test_cores_that_llvm_lacks(change: dict[str, object], message: str) -> None:
    core = dataclasses.replace(find("reference").core, **change)  # type: ignore[arg-type]
    with pytest.raises(KirError, match=message):
        toolchain.target_machine(core)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_header_has_the_simulators_layout(tmp_path: Path) -> None:
    """kir_accel.h is C, and its kir_pe is laid out as the simulator's and as kir_accel.ll's."""
    checks = "".join(
        f'_Static_assert(offsetof(kir_pe, {name}) == {getattr(simulator.Pe, name).offset}, "");\n'
        for name, _ in simulator.Pe._fields_
    )
    source = tmp_path / "t.c"
    source.write_text(
        f'#include <stddef.h>\n#include "kir_accel.h"\n{checks}'
        f'_Static_assert(sizeof(kir_pe) == {ctypes.sizeof(simulator.Pe)}, "");\n',
        encoding="utf-8",
    )
    done = subprocess.run(
        ["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", f"-I{toolchain.RUNTIME}", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
