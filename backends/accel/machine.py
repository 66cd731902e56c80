"""An accelerator described by data: a TOML file read into frozen records, every field checked.

`machines/*.toml` are known by name; any other file is given by its path. What a field means is
said in `machines/reference.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from kir.dtypes import DTYPES, DType
from kir.errors import FileError, UsageError

MACHINES = Path(__file__).parent / "machines"
DEFAULT = "reference"
CODE_MODELS = ("small", "kernel", "medium", "large")
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Grid:
    """`rows * columns` processing elements."""

    rows: int
    columns: int
    clock_mhz: float


@dataclass(frozen=True)
class Core:
    """What LLVM is told about the core of each processing element."""

    triple: str
    cpu: str
    features: tuple[str, ...]
    abi: str
    code_model: str
    vector_bits: int


@dataclass(frozen=True)
class Local:
    """The scratchpad of one processing element."""

    bytes: int
    alignment: int
    gb_per_s: float


@dataclass(frozen=True)
class Dma:
    """Limits of one transfer: `alignment` holds for addresses, strides and row sizes."""

    alignment: int
    max_row_bytes: int
    max_rows: int
    gb_per_s: float


@dataclass(frozen=True)
class Matrix:
    """One mode of the matrix engine: acc[m, n] += a[m, k] * b[k, n], at most m, n, k at a time."""

    m: int
    n: int
    k: int
    a: DType
    b: DType
    acc: DType
    macs_per_cycle: int


@dataclass(frozen=True)
class Memory:
    """A memory that all processing elements share."""

    name: str
    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class Machine:
    name: str
    grid: Grid
    core: Core
    local: Local
    dma: Dma
    matrix: tuple[Matrix, ...]
    memory: tuple[Memory, ...]

    @property
    def pe_count(self) -> int:
        return self.grid.rows * self.grid.columns

    def engine(self, a: DType, b: DType, acc: DType) -> Matrix | None:
        """The engine's mode for these dtypes, or None where it has none."""
        return next((x for x in self.matrix if (x.a, x.b, x.acc) == (a, b, acc)), None)


ENGINE_DTYPES = {
    ("f32", "f32", "f32"),
    ("bf16", "bf16", "f32"),
    ("f16", "f16", "f32"),
    ("i8", "i8", "i32"),
}
"""The (a, b, acc) which the run-time interface has a meaning for."""


def known() -> tuple[str, ...]:
    """Names of the machines that come with KIR, the default first."""
    names = sorted(p.stem for p in MACHINES.glob("*.toml"))
    return (DEFAULT, *(n for n in names if n != DEFAULT))


def find(arch: str) -> Machine:
    """The machine called `arch`, or described by the file `arch`.

    Raises FileError where the file cannot be read or is no TOML, UsageError where the name is
    unknown or a field is missing, unknown or wrong.
    """
    if arch in known():
        return load(MACHINES / f"{arch}.toml")
    if arch.endswith(".toml") or "/" in arch:
        return load(Path(arch))
    raise UsageError(
        f"unknown accelerator `{arch}`",
        hint=f"known are {', '.join(known())}; a path to a .toml file describes another",
    )


def load(path: Path) -> Machine:
    """Read a machine file; errors as `find`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise FileError(
            f"the machine file {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="machines/reference.toml is a complete example",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise FileError(f"the machine file {path} is larger than {MAX_FILE_BYTES} bytes")
    return _parse(data, str(path))


@lru_cache(maxsize=32)
def _parse(data: bytes, path: str) -> Machine:
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise FileError(f"the machine file {path} is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(f"the machine file {path} is not TOML: {error}") from None
    return _machine(_Table(table, path, ""))


# --- reading fields --------------------------------------------------------------------------

T = TypeVar("T")


@dataclass(frozen=True)
class _Table:
    """A TOML table and where it stands; every getter checks type and range."""

    data: Mapping[str, Any]
    path: str
    place: str

    def error(self, key: str, problem: str, hint: str | None = None) -> UsageError:
        where = f"{self.place} {key}".strip()
        return UsageError(f"machine file {self.path}: `{where}` {problem}", hint=hint)

    def get(self, key: str) -> Any:
        if key not in self.data:
            raise self.error(key, "is missing", hint="machines/reference.toml has every field")
        return self.data[key]

    def only(self, *keys: str) -> None:
        for key in self.data:
            if key not in keys:
                raise self.error(key, "is not a field", hint=f"known here: {', '.join(keys)}")

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"is {_show(value)}, not an integer")
        if not low <= value <= high:
            raise self.error(key, f"is {_show(value)}; it must lie between {low} and {high}")
        return value

    def power_of_two(self, key: str, low: int, high: int) -> int:
        value = self.integer(key, low, high)
        if value & (value - 1):
            raise self.error(key, f"is {value}, not a power of two")
        return value

    def rate(self, key: str) -> float:
        value = self.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(key, f"is {_show(value)}, not a number")
        if not 0 < value < 1e12:
            raise self.error(key, f"is {_show(value)}; it must be greater than 0 and below 1e12")
        return float(value)

    def text(self, key: str, pattern: str) -> str:
        return self.checked_text(key, self.get(key), pattern)

    def checked_text(self, key: str, value: Any, pattern: str) -> str:
        if not isinstance(value, str):
            raise self.error(key, f"is {_show(value)}, not a string")
        if not re.fullmatch(pattern, value):
            raise self.error(key, f"is {_show(value)}, which does not match {pattern}")
        return value

    def table(self, key: str, make: Callable[[_Table], T]) -> T:
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(key, f"is {_show(value)}, not a table", hint=f"write [{key}]")
        return make(_Table(value, self.path, f"{self.place}[{key}]"))

    def tables(self, key: str, make: Callable[[_Table], T]) -> tuple[T, ...]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            raise self.error(key, "is not a list of tables", hint=f"write [[{key}]]")
        return tuple(make(_Table(x, self.path, f"[[{key}]] {i + 1}:")) for i, x in enumerate(value))


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _machine(t: _Table) -> Machine:
    t.only("name", "grid", "core", "local", "dma", "matrix", "memory")
    matrix = t.tables("matrix", _matrix)
    modes = [(x.a.name, x.b.name, x.acc.name) for x in matrix]
    for mode in modes:
        if modes.count(mode) > 1:
            raise t.error("[[matrix]]", f"has two entries for {' x '.join(mode[:2])} -> {mode[2]}")
    return Machine(
        name=t.text("name", r"[A-Za-z_][A-Za-z0-9_-]{0,63}"),
        grid=t.table("grid", _grid),
        core=t.table("core", _core),
        local=t.table("local", _local),
        dma=t.table("dma", _dma),
        matrix=matrix,
        memory=t.tables("memory", _memory),
    )


def _grid(t: _Table) -> Grid:
    t.only("rows", "columns", "clock_mhz")
    return Grid(t.integer("rows", 1, 1024), t.integer("columns", 1, 1024), t.rate("clock_mhz"))


def _core(t: _Table) -> Core:
    t.only("triple", "cpu", "features", "abi", "code_model", "vector_bits")
    features = t.get("features")
    if not isinstance(features, list):
        raise t.error("features", f"is {_show(features)}, not a list of strings")
    model = t.text("code_model", r"[a-z]+")
    if model not in CODE_MODELS:
        raise t.error("code_model", f"is `{model}`", hint=f"it is one of {', '.join(CODE_MODELS)}")
    return Core(
        triple=t.text("triple", r"[a-z0-9_]+(-[A-Za-z0-9_.]+){1,3}"),
        cpu=t.text("cpu", r"[A-Za-z0-9_.-]+"),
        features=tuple(
            t.checked_text("features", x, r"[+-][a-z0-9][a-z0-9_.-]*") for x in features
        ),
        abi=t.text("abi", r"[a-z0-9]+"),
        code_model=model,
        vector_bits=t.power_of_two("vector_bits", 64, 65536),
    )


def _local(t: _Table) -> Local:
    t.only("bytes", "alignment", "gb_per_s")
    size = t.integer("bytes", 1, 1 << 32)
    alignment = t.power_of_two("alignment", 1, 4096)
    if size % alignment:
        raise t.error("bytes", f"is {size}, no multiple of the alignment {alignment}")
    return Local(size, alignment, t.rate("gb_per_s"))


def _dma(t: _Table) -> Dma:
    t.only("alignment", "max_row_bytes", "max_rows", "gb_per_s")
    return Dma(
        t.power_of_two("alignment", 1, 4096),
        t.integer("max_row_bytes", 1, 1 << 40),
        t.integer("max_rows", 1, 1 << 40),
        t.rate("gb_per_s"),
    )


def _matrix(t: _Table) -> Matrix:
    t.only("m", "n", "k", "a", "b", "acc", "macs_per_cycle")

    def dtype(key: str) -> DType:
        name = t.text(key, r"[a-z0-9]+")
        if name not in DTYPES:
            raise t.error(key, f"is `{name}`, no dtype", hint=f"the dtypes: {', '.join(DTYPES)}")
        return DTYPES[name]

    a, b, acc = dtype("a"), dtype("b"), dtype("acc")
    if (a.name, b.name, acc.name) not in ENGINE_DTYPES:
        modes = ", ".join(f"{x} x {y} -> {z}" for x, y, z in sorted(ENGINE_DTYPES))
        raise t.error(
            "acc",
            f"makes {a} x {b} -> {acc}, which the run-time interface has no meaning for",
            hint=f"it has {modes}",
        )
    m, n, k = (t.integer(key, 1, 4096) for key in ("m", "n", "k"))
    return Matrix(m, n, k, a, b, acc, t.integer("macs_per_cycle", 1, 1 << 30))


def _memory(t: _Table) -> Memory:
    t.only("name", "bytes", "gb_per_s")
    return Memory(
        t.text("name", r"[A-Za-z_][A-Za-z0-9_-]*"),
        t.integer("bytes", 1, 1 << 50),
        t.rate("gb_per_s"),
    )
