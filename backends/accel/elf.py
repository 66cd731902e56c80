"""A static linker for one RISC-V object file, so that QEMU needs no cross toolchain.

All code of a program (kernel, run-time interface, start) is one LLVM module and so one object
with few kinds of relocation. What is not handled here is an error, never skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kir.errors import CompileError

EM_RISCV = 243
SHT_RELA, SHT_NOBITS, SHT_SYMTAB = 4, 8, 2
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
STT_SECTION = 3
PAGE = 0x1000
TEXT = 0x10000
ARENA = 0x4000_0000
"""Where the arena lies in every program: images may hold addresses before linking."""


@dataclass(frozen=True)
class Section:
    name: str
    type: int
    flags: int
    data: bytes
    size: int
    link: int
    info: int
    alignment: int


@dataclass(frozen=True)
class Symbol:
    name: str
    section: int
    value: int
    kind: int


@dataclass(frozen=True)
class Relocation:
    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class Object:
    """A parsed ELF64 little-endian relocatable file."""

    machine: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def undefined(self) -> tuple[str, ...]:
        """Names that other objects have to give."""
        return tuple(s.name for s in self.symbols if s.section == SHN_UNDEF and s.name)

    def relocations(self, section: int) -> list[Relocation]:
        """The relocations of one section."""
        found = []
        for table in self.sections:
            if table.type == SHT_RELA and table.info == section:
                for offset, info, addend in struct.iter_unpack("<QQq", table.data):
                    found.append(Relocation(offset, info & 0xFFFFFFFF, info >> 32, addend))
        return found


def read_object(data: bytes) -> Object:
    """Parse an object file; CompileError where it is not one."""
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 16)[0] != 1:
        raise CompileError("the object file is no 64-bit little-endian ELF relocatable")
    machine = struct.unpack_from("<H", data, 18)[0]
    table, count, names_at = struct.unpack_from("<Q12xHH", data, 40)
    raw = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    names = raw[names_at]
    sections = tuple(
        Section(
            name=_string(data, names[4] + r[0]),
            type=r[1],
            flags=r[2],
            data=b"" if r[1] == SHT_NOBITS else data[r[4] : r[4] + r[5]],
            size=r[5],
            link=r[6],
            info=r[7],
            alignment=max(r[8], 1),
        )
        for r in raw
    )
    symbols: list[Symbol] = []
    for section in sections:
        if section.type == SHT_SYMTAB:
            strings = sections[section.link].data
            for name, info, _, index, value, _ in struct.iter_unpack("<IBBHQQ", section.data):
                symbols.append(Symbol(_string(strings, name), index, value, info & 15))
    return Object(machine, sections, tuple(symbols))


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("utf-8")


# --- machine code that LLVM IR cannot express ------------------------------------------------

_ECALL = 0x00000073
_SYSCALL = (  # kir_syscall(number, a, b, c): the number goes to a7, the arguments to a0, a1, a2
    0x00050893,  # mv a7, a0
    0x00058513,  # mv a0, a1
    0x00060593,  # mv a1, a2
    0x00068613,  # mv a2, a3
    _ECALL,
    0x00008067,  # ret
)
_EXIT = 93


def _start(at: int, main: int) -> bytes:
    """`_start` at an address: call kir_main and exit with what it returns."""
    offset = main - at
    high, low = (offset + 0x800) >> 12, offset & 0xFFF
    words = (
        0x00000097 | (high & 0xFFFFF) << 12,  # auipc ra, high
        0x000080E7 | low << 20,  # jalr ra, low(ra)
        0x00000893 | _EXIT << 20,  # li a7, 93
        _ECALL,
    )
    return struct.pack("<4I", *words)


# --- linking ---------------------------------------------------------------------------------


def link(object_file: bytes, arena_bytes: int) -> bytes:
    """A static RISC-V Linux executable of one object that defines `kir_main`.

    It gets `_start`, `kir_syscall`, and `kir_arena`: `arena_bytes` of zeroed memory at ARENA,
    whose size stands in `kir_arena_bytes`. CompileError for an undefined symbol or an unknown
    relocation.
    """
    obj = read_object(object_file)
    if obj.machine != EM_RISCV:
        raise CompileError("only RISC-V objects can be linked into a program for QEMU")
    kept = [
        (i, s)
        for i, s in enumerate(obj.sections)
        if s.flags & SHF_ALLOC and s.name != ".eh_frame" and s.size
    ]
    kept.sort(key=lambda pair: bool(pair[1].flags & SHF_WRITE))
    stubs = TEXT + PAGE // 2  # headers, then _start and kir_syscall, then the sections
    at = stubs + 16 + 4 * len(_SYSCALL)
    split = 0
    places: dict[int, int] = {}
    for index, section in kept:
        if section.flags & SHF_WRITE and not split:
            at = split = _up(at, PAGE)
        at = _up(at, section.alignment)
        places[index] = at
        at += section.size
    if not split:
        at = split = _up(at, PAGE)
    size_at = _up(at, 8)
    end = size_at + 8
    given = {"kir_arena": ARENA, "kir_arena_bytes": size_at, "kir_syscall": stubs + 16}
    values = _values(obj, places, given)
    image = bytearray(end - TEXT)
    for index, section in kept:
        code = _relocate(obj, index, section, places[index], values)
        image[places[index] - TEXT : places[index] - TEXT + len(code)] = code
    main = next((v for s, v in zip(obj.symbols, values, strict=True) if s.name == "kir_main"), None)
    if main is None:
        raise CompileError("the program defines no `kir_main`")
    stub = _start(stubs, main) + struct.pack(f"<{len(_SYSCALL)}I", *_SYSCALL)
    image[stubs - TEXT : stubs - TEXT + len(stub)] = stub
    struct.pack_into("<q", image, size_at - TEXT, arena_bytes)
    header = _headers(stubs, split, end, arena_bytes, _flags(object_file))
    image[: len(header)] = header
    return bytes(image)


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


def _flags(object_file: bytes) -> int:
    return int(struct.unpack_from("<I", object_file, 48)[0])


def _headers(entry: int, split: int, end: int, arena_bytes: int, flags: int) -> bytes:
    """The ELF header and three segments: code and constants, data, the arena."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, EM_RISCV, 1, entry, 64, 0, flags, 64, 56, 3, 0, 0, 0
    )
    read, write, execute = 4, 2, 1

    def segment(rights: int, start: int, stop: int, in_file: bool) -> bytes:
        stored = stop - start if in_file else 0
        offset = start - TEXT if in_file else 0
        return struct.pack("<IIQQQQQQ", 1, rights, offset, start, start, stored, stop - start, PAGE)

    return (
        header
        + segment(read | execute, TEXT, split, True)
        + segment(read | write, split, end, True)
        + segment(read | write, ARENA, ARENA + max(arena_bytes, 1), False)
    )


def _values(obj: Object, places: Mapping[int, int], given: Mapping[str, int]) -> list[int]:
    """The address of every symbol, by its index; a symbol of a dropped section gets 0."""
    values = []
    for symbol in obj.symbols:
        if symbol.section == SHN_UNDEF and symbol.name:
            if symbol.name not in given:
                raise CompileError(f"the program needs `{symbol.name}`, which nothing defines")
            values.append(given[symbol.name])
        elif symbol.section == SHN_ABS:
            values.append(symbol.value)
        else:
            values.append(places.get(symbol.section, 0) + symbol.value)
    return values


def _relocate(obj: Object, index: int, section: Section, base: int, values: list[int]) -> bytearray:
    """The section's bytes with its relocations applied (psABI, "Relocations")."""
    code = bytearray(section.data or bytes(section.size))
    highs: dict[int, int] = {}  # address of an auipc -> the distance it is the high part of
    relocations = obj.relocations(index)
    for r in relocations:
        if r.type == 23:
            highs[base + r.offset] = values[r.symbol] + r.addend - (base + r.offset)
    for r in relocations:
        target, here = values[r.symbol] + r.addend, base + r.offset
        if r.type in _FIELDS:
            distance = target if r.type in (26, 27, 28) else target - here
            if r.type in (24, 25):  # refers to the label of its auipc
                distance = highs[values[r.symbol]]
            _FIELDS[r.type](code, r.offset, distance)
        elif r.type in _WORDS:
            form, sign, relative = _WORDS[r.type]
            size = struct.calcsize(form)
            old = struct.unpack_from(form, code, r.offset)[0] if sign else 0
            value = old + (sign or 1) * target - (here if relative else 0)
            struct.pack_into(form, code, r.offset, value & ((1 << 8 * size) - 1))
        elif r.type != 51:  # R_RISCV_RELAX asks for nothing
            name = obj.symbols[r.symbol].name
            raise CompileError(f"relocation {r.type} against `{name}` is not handled")
    return code


def _upper(code: bytearray, at: int, distance: int) -> None:
    """The upper 20 bits, rounded so that the low 12 are a signed rest."""
    high = (distance + 0x800) >> 12
    if not -(1 << 19) <= high < 1 << 19:
        raise CompileError("a relocation reaches further than 2 GB")
    word = struct.unpack_from("<I", code, at)[0] & 0xFFF
    struct.pack_into("<I", code, at, word | (high & 0xFFFFF) << 12)


def _lower_i(code: bytearray, at: int, distance: int) -> None:
    word = struct.unpack_from("<I", code, at)[0] & 0x000FFFFF
    struct.pack_into("<I", code, at, word | (distance & 0xFFF) << 20)


def _lower_s(code: bytearray, at: int, distance: int) -> None:
    word = struct.unpack_from("<I", code, at)[0] & 0x01FFF07F
    low = distance & 0xFFF
    struct.pack_into("<I", code, at, word | (low >> 5) << 25 | (low & 31) << 7)


def _pair(code: bytearray, at: int, distance: int) -> None:
    """auipc and jalr."""
    _upper(code, at, distance)
    _lower_i(code, at + 4, distance)


_FIELDS = {  # by relocation number
    18: _pair,  # CALL
    19: _pair,  # CALL_PLT
    23: _upper,  # PCREL_HI20
    24: _lower_i,  # PCREL_LO12_I
    25: _lower_s,  # PCREL_LO12_S
    26: _upper,  # HI20
    27: _lower_i,  # LO12_I
    28: _lower_s,  # LO12_S
}
_WORDS = {  # number -> format, sign of the addition to what stands there (0: overwrite), relative
    1: ("<I", 0, False),  # 32
    2: ("<Q", 0, False),  # 64
    57: ("<I", 0, True),  # 32_PCREL
    33: ("<B", 1, False),  # ADD8, 16, 32, 64
    34: ("<H", 1, False),
    35: ("<I", 1, False),
    36: ("<Q", 1, False),
    37: ("<B", -1, False),  # SUB8, 16, 32, 64
    38: ("<H", -1, False),
    39: ("<I", -1, False),
    40: ("<Q", -1, False),
}
