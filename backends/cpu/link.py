"""From an object to an image: an ELF object for x86-64 becomes bytes that run wherever they are
mapped.

What an object's code says about itself is relative, so it is settled here, once; left for loading
are the addresses of functions outside. Format and relocations: System V ABI, AMD64 supplement,
chapter 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kir.backends.cpu.image import PAGE, Image
from kir.errors import CompileError

ELF64_LITTLE_RELOCATABLE_X86 = (b"\x7fELF\x02\x01", 1, 62)
PROGBITS, SYMTAB, RELA, NOBITS = 1, 2, 4, 8
WRITE, ALLOC = 1, 2
ABSOLUTE, PC32, PLT32, GOTPCREL, GOTPCRELX, REX_GOTPCRELX, PC64 = 1, 2, 4, 9, 41, 42, 24
STUB = b"\xff\x25"
"""`jmp *offset(%rip)`"""


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


def is_linkable(obj: bytes) -> bool:
    """Whether `link` knows the machine that an object is for."""
    magic, kind, machine = ELF64_LITTLE_RELOCATABLE_X86
    return obj[:6] == magic and struct.unpack_from("<HH", obj, 16) == (kind, machine)


def link(obj: bytes) -> Image:
    """The image of an object; CompileError for a relocation that code of ours does not have."""
    return _Linker(obj).run()


class _Linker:
    def __init__(self, obj: bytes) -> None:
        self.obj = obj
        self.sections = self._sections()
        self.symbols = self._symbols()
        self.places: dict[int, int] = {}
        self.stubs: dict[str, int] = {}
        self.slots: dict[tuple[str, int], int] = {}
        self.bases: list[tuple[int, int]] = []

    def _sections(self) -> list[_Section]:
        (start,) = struct.unpack_from("<Q", self.obj, 40)
        size, count, names = struct.unpack_from("<HHH", self.obj, 58)
        rows = [struct.unpack_from("<IIQQQQIIQQ", self.obj, start + k * size) for k in range(count)]
        table = rows[names][4]
        return [
            _Section(self._string(table + r[0]), r[1], r[2], r[4], r[5], r[6], r[7], r[8])
            for r in rows
        ]

    def _string(self, at: int) -> str:
        return self.obj[at : self.obj.index(b"\0", at)].decode()

    def _symbols(self) -> list[_Symbol]:
        found: list[_Symbol] = []
        for s in self.sections:
            if s.kind == SYMTAB:
                names = self.sections[s.link].offset
                for at in range(s.offset, s.offset + s.size, 24):
                    name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.obj, at)
                    found.append(_Symbol(self._string(names + name), section, value))
        return found

    def run(self) -> Image:
        kept = [
            (k, s)
            for k, s in enumerate(self.sections)
            if s.flags & ALLOC and s.kind in (PROGBITS, NOBITS) and s.name != ".eh_frame"
        ]
        fixed = [(k, s) for k, s in kept if not s.flags & WRITE]
        varying = [(k, s) for k, s in kept if s.flags & WRITE and s.kind == PROGBITS]
        empty = [(k, s) for k, s in kept if s.flags & WRITE and s.kind == NOBITS]
        body = bytearray()
        for k, s in fixed:
            self._place(body, k, s)
        body += self._outside(len(body))
        body += bytes(-len(body) % PAGE)
        code = len(body)
        for k, s in varying:
            self._place(body, k, s)
        end = len(body)
        total = end
        for k, s in empty:
            total += -total % s.align
            self.places[k] = total
            total += s.size
        self._relocate(body)
        names = {
            s.name: self.places[s.section] + s.value
            for s in self.symbols
            if s.name and s.section in self.places
        }
        slots = tuple((at, name) for (name, _), at in self.slots.items() if name)
        return Image(bytes(body[:code]), bytes(body[code:]), total - end, slots,
                     tuple(self.bases), names)  # fmt: skip

    def _place(self, body: bytearray, k: int, s: _Section) -> None:
        body += bytes(-len(body) % max(1, s.align))
        self.places[k] = len(body)
        body += self.obj[s.offset : s.offset + s.size] if s.kind == PROGBITS else bytes(s.size)

    def _outside(self, start: int) -> bytes:
        """Slots for addresses, and a jump through each for code that calls."""
        wanted = dict.fromkeys(
            (symbol.name, 0) if symbol.section == 0 else ("", index)
            for _, kind, index, _ in self._relocations()
            for symbol in (self.symbols[index],)
            if symbol.section == 0 or kind in (GOTPCREL, GOTPCRELX, REX_GOTPCRELX)
        )
        at = start + -start % 16
        for key in wanted:
            self.slots[key] = at
            at += 8
        made = bytearray(at - start)
        for key, slot in self.slots.items():
            if key[0]:
                self.stubs[key[0]] = start + len(made)
                made += STUB + struct.pack("<i", slot - (start + len(made) + 6)) + b"\xcc\xcc"
        return bytes(made)

    def _relocations(self) -> list[tuple[int, int, int, int]]:
        """(place in the image, kind, symbol, addend) of all that are kept."""
        found = []
        for s in self.sections:
            if s.kind == RELA and s.info in self.places:
                base = self.places[s.info]
                for at in range(s.offset, s.offset + s.size, 24):
                    where, info, addend = struct.unpack_from("<QQq", self.obj, at)
                    found.append((base + where, info & 0xFFFFFFFF, info >> 32, addend))
        return found

    def _relocate(self, body: bytearray) -> None:
        for place, kind, index, addend in self._relocations():
            symbol = self.symbols[index]
            if kind in (GOTPCREL, GOTPCRELX, REX_GOTPCRELX):
                outside = symbol.section == 0
                slot = self.slots[(symbol.name, 0) if outside else ("", index)]
                if not outside:
                    self.bases.append((slot, self._target(symbol)))
                struct.pack_into("<i", body, place, slot + addend - place)
            elif kind in (PC32, PLT32):
                struct.pack_into("<i", body, place, self._target(symbol) + addend - place)
            elif kind == PC64:
                struct.pack_into("<q", body, place, self._target(symbol) + addend - place)
            elif kind == ABSOLUTE:
                self.bases.append((place, self._target(symbol) + addend))
            else:
                raise CompileError(f"an object has a relocation of kind {kind}",
                                   hint="this is a bug of KIR: report it")  # fmt: skip

    def _target(self, symbol: _Symbol) -> int:
        if symbol.section in self.places:
            return self.places[symbol.section] + symbol.value
        if symbol.section == 0 and symbol.name in self.stubs:
            return self.stubs[symbol.name]
        raise CompileError(f"an object refers to `{symbol.name}`, which is nowhere",
                           hint="this is a bug of KIR: report it")  # fmt: skip
