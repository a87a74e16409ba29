"""Loads relocatable ELF objects for x86-64 into this process: a small static linker, standard library only.

Several objects become one image of up to three protected parts, each starting on its own page:

    code (read, execute) | constants and addresses, the "GOT" (read) | data and zeroed data (read, write)

The image is written while it is plain memory and protected before anything runs, so no page is ever writable and
executable at once.  Symbols of one object resolve in the others; what remains is looked up in libc, libm and libgcc.
Every offset, size and index is checked against the bytes before use: a damaged object ends in `BadObject`.

Source: System V ABI, AMD64 supplement, chapters 4.1-4.4 (sections, symbols, relocations).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dlc.runtime.errors import BadObject, NativeMemory, UnresolvedSymbol

MAX_IMAGE_BYTES: Final = 1 << 30
MAX_SECTIONS: Final = 1 << 16
MAX_SYMBOLS: Final = 1 << 20
MAX_RELOCATIONS: Final = 1 << 22
PAGE: Final = mmap.PAGESIZE

_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL = 1, 2, 4, 8, 9
_INIT_ARRAYS = (14, 15, 16)
_WRITE, _ALLOC, _EXEC, _TLS = 1, 2, 4, 0x400
_UNDEF, _ABS, _COMMON, _RESERVED = 0, 0xFFF1, 0xFFF2, 0xFF00
_STB_LOCAL, _STB_WEAK = 0, 2
_STT_TLS, _STT_IFUNC = 6, 10

_CODE, _CONST, _DATA = 0, 1, 2
"""Parts of the image, in order of address."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    bind: int
    kind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class _Relocation:
    section: int
    offset: int
    kind: int
    symbol: int
    addend: int


class Image:
    """Linked code in memory, alive as long as this object is.

    Attributes:
        symbols: address of every global symbol, by name.
        code_bytes: of the executable part, which comes first.
        size_bytes: of the whole mapping.
    """

    __slots__ = ("_memory", "base", "code_bytes", "size_bytes", "symbols")

    def __init__(self, memory: mmap.mmap, base: int, code_bytes: int, symbols: Mapping[str, int]) -> None:
        self._memory = memory
        self.base = base
        self.code_bytes = code_bytes
        self.size_bytes = len(memory)
        self.symbols = dict(symbols)

    def __getitem__(self, name: str) -> int:
        return self.symbols[name]

    def __contains__(self, name: object) -> bool:
        return name in self.symbols

    def is_code(self, name: str) -> bool:
        """Whether `name` is a symbol in the executable part."""
        return self.base <= self.symbols.get(name, -1) < self.base + self.code_bytes


def load_objects(objects: Mapping[str, bytes | memoryview]) -> Image:
    """Link `objects` (name -> bytes of an ELF64 relocatable file) into one executable image.

    Raises:
        BadObject: damaged, or of a kind this loader refuses.
        UnresolvedSymbol: a function that exists nowhere.
        NativeMemory: the system refuses memory, or to make it executable.
    """
    parsed = [_Object(name, bytes(data)) for name, data in objects.items()]
    return _Linker(parsed).link()


class _Object:
    """One object file, parsed and checked."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self.sections = self._read_sections()
        self.symbols = self._read_symbols()
        self.relocations = tuple(self._read_relocations())

    def bad(self, reason: str) -> BadObject:
        return BadObject(name=self.name, reason=reason)

    def _range(self, offset: int, size: int, what: str) -> int:
        if size < 0 or offset < 0 or offset + size > len(self.data):
            raise self.bad(f"{what} lies outside the file")
        return offset

    def _read_sections(self) -> tuple[_Section, ...]:
        data = self.data
        self._range(0, 64, "the ELF header")
        if data[:7] != b"\x7fELF\x02\x01\x01":
            raise self.bad("it is no little-endian 64-bit ELF file")
        kind, machine, version = struct.unpack_from("<HHI", data, 16)
        if (kind, machine, version) != (1, 62, 1):
            raise self.bad("it is no relocatable x86-64 object")
        (table,) = struct.unpack_from("<Q", data, 40)
        entry_bytes, count, names = struct.unpack_from("<HHH", data, 58)
        if entry_bytes != 64 or not 0 < count < MAX_SECTIONS or names >= count:
            raise self.bad("its section table has an unknown form")
        self._range(table, 64 * count, "the section table")
        raw = list(struct.iter_unpack("<IIQQQQIIQQ", data[table : table + 64 * count]))
        name_at, name_bytes = raw[names][4], raw[names][5]
        self._range(name_at, name_bytes, "the section names")
        sections = []
        for name, kind, flags, _, offset, size, link, info, align, each in raw:
            if size > MAX_IMAGE_BYTES:
                raise self.bad("a section is larger than an image may be")
            if kind not in (0, _NOBITS):
                self._range(offset, size, "a section")
            if align & (align - 1) or align > PAGE:
                raise self.bad("a section has an impossible alignment")
            label = self._text(name_at, name_bytes, name)
            section = _Section(label, kind, flags, offset, size, link, info, max(align, 1), each)
            self._refuse(section)
            sections.append(section)
        return tuple(sections)

    def _refuse(self, section: _Section) -> None:
        if section.kind in _INIT_ARRAYS or section.name.startswith((".init", ".fini", ".ctors", ".dtors")):
            raise self.bad(f"it has code to run at load time ({section.name})")
        if not section.flags & _ALLOC:
            return
        if section.flags & _TLS:
            raise self.bad(f"it has thread-local storage ({section.name})")
        if section.flags & _WRITE and section.flags & _EXEC:
            raise self.bad(f"the section {section.name} would be writable and executable")

    def _text(self, table: int, table_bytes: int, offset: int) -> str:
        if offset >= table_bytes:
            raise self.bad("a name lies outside its table")
        end = self.data.find(b"\0", table + offset, table + table_bytes)
        if end < 0:
            raise self.bad("a name has no end")
        return self.data[table + offset : end].decode("utf-8", "backslashreplace")

    def _read_symbols(self) -> tuple[_Symbol, ...]:
        tables = [s for s in self.sections if s.kind == _SYMTAB]
        if len(tables) != 1:
            raise self.bad(f"it has {len(tables)} symbol tables, expected one")
        table = tables[0]
        if table.link >= len(self.sections) or table.size % 24 or table.size // 24 > MAX_SYMBOLS:
            raise self.bad("its symbol table has an unknown form")
        names = self.sections[table.link]
        if names.kind == _NOBITS:
            raise self.bad("its symbol names are missing")
        symbols = []
        for name, info, _, section, value, size in struct.iter_unpack(
            "<IBBHQQ", self.data[table.offset : table.offset + table.size]
        ):
            label = self._text(names.offset, names.size, name) if name else ""
            symbol = _Symbol(label, info >> 4, info & 15, section, value, size)
            self._check_symbol(symbol)
            symbols.append(symbol)
        return tuple(symbols)

    def _check_symbol(self, symbol: _Symbol) -> None:
        if symbol.kind in (_STT_TLS, _STT_IFUNC):
            raise self.bad(f"the symbol '{symbol.name}' is of a kind that needs a full linker")
        if symbol.section == _COMMON:
            align = symbol.value
            if symbol.size > MAX_IMAGE_BYTES or align & (align - 1) or align > PAGE:
                raise self.bad(f"the common symbol '{symbol.name}' is impossible")
        elif symbol.section not in (_UNDEF, _ABS):
            if symbol.section >= min(len(self.sections), _RESERVED):
                raise self.bad(f"the symbol '{symbol.name}' is in no section")
            if symbol.value > self.sections[symbol.section].size:
                raise self.bad(f"the symbol '{symbol.name}' lies outside its section")

    def _read_relocations(self) -> Iterator[_Relocation]:
        total = 0
        for section in self.sections:
            if section.kind == _REL:
                raise self.bad("it has relocations without addends")
            if section.kind != _RELA:
                continue
            if section.info >= len(self.sections) or section.size % 24:
                raise self.bad("a relocation table has an unknown form")
            if not keeps(self.sections[section.info]):
                continue
            target = self.sections[section.info]
            if target.kind == _NOBITS:
                raise self.bad("it relocates memory that has no contents")
            total += section.size // 24
            if total > MAX_RELOCATIONS:
                raise self.bad("it has too many relocations")
            for offset, info, addend in struct.iter_unpack(
                "<QQq", self.data[section.offset : section.offset + section.size]
            ):
                if info >> 32 >= len(self.symbols):
                    raise self.bad("a relocation names a symbol that does not exist")
                yield _Relocation(section.info, offset, info & 0xFFFFFFFF, info >> 32, addend)


def keeps(section: _Section) -> bool:
    """Whether the section goes into the image; unwind tables do not, as nothing registers them."""
    return bool(section.flags & _ALLOC) and section.size > 0 and section.name != ".eh_frame"


# relocation kind -> bytes it writes; the kinds after 4 read an address from the GOT
_R_64, _R_PC32, _R_PLT32, _R_32, _R_32S, _R_PC64 = 1, 2, 4, 10, 11, 24
_GOT_KINDS = (9, 41, 42)
_WIDTH = {_R_64: 8, _R_PC32: 4, _R_PLT32: 4, _R_32: 4, _R_32S: 4, _R_PC64: 8, 9: 4, 41: 4, 42: 4}


class _Linker:
    """Places sections, resolves symbols, applies relocations, protects."""

    def __init__(self, objects: list[_Object]) -> None:
        self.objects = objects
        self.place: dict[tuple[int, int], int] = {}  # (object, section) -> offset in the image
        self.common: dict[tuple[int, int], int] = {}  # (object, symbol) -> offset in the image
        self.ends = [0, 0, 0]  # end of each part, multiples of the page
        self.got: dict[int, int] = {}  # address -> offset of its slot
        self.got_at = self.stub_at = 0  # next free slot
        self.stubs: dict[int, int] = {}

    def link(self) -> Image:
        self._layout()
        size = max(self.ends[_DATA], PAGE)
        if size > MAX_IMAGE_BYTES:
            raise self.objects[0].bad("the image is larger than an image may be")
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise NativeMemory(what=f"{size} bytes for code", reason=str(error)) from None
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._copy(memory)
        exported = self._exported(base)
        for index, item in enumerate(self.objects):
            addresses = self._addresses(index, item, base, exported)
            self._relocate(index, item, memory, base, addresses)
        self._protect(base)
        return Image(memory, base, self.ends[_CODE], exported)

    def _layout(self) -> None:
        at = 0
        for part in (_CODE, _CONST, _DATA):
            for index, item in enumerate(self.objects):
                for number, section in enumerate(item.sections):
                    if keeps(section) and _part(section) == part:
                        # 64: vector constants are then never split over cache lines
                        at = _up(at, max(section.align, 64))
                        self.place[index, number] = at
                        at += section.size
                if part == _DATA:
                    for number, symbol in enumerate(item.symbols):
                        if symbol.section == _COMMON:
                            at = _up(at, max(symbol.value, 16))
                            self.common[index, number] = at
                            at += symbol.size
            if part == _CODE:
                self.stub_at = at = _up(at, 16)
                at += 16 * self._external_count()
            if part == _CONST:
                self.got_at = at = _up(at, 8)
                at += 8 * self._got_count()
            at = _up(at, PAGE)
            self.ends[part] = at

    def _external_count(self) -> int:
        """Most stubs that far calls can need: one per symbol defined outside the image."""
        return sum(1 for item in self.objects for s in item.symbols if s.section in (_UNDEF, _ABS))

    def _got_count(self) -> int:
        return sum(1 for item in self.objects for r in item.relocations if r.kind in _GOT_KINDS)

    def _copy(self, memory: mmap.mmap) -> None:
        for (index, number), at in self.place.items():
            item = self.objects[index]
            section = item.sections[number]
            if section.kind != _NOBITS:
                memory[at : at + section.size] = item.data[section.offset : section.offset + section.size]

    def _exported(self, base: int) -> dict[str, int]:
        strong: dict[str, int] = {}
        weak: dict[str, int] = {}
        for index, item in enumerate(self.objects):
            for number, symbol in enumerate(item.symbols):
                if symbol.bind == _STB_LOCAL or not symbol.name or symbol.section == _UNDEF:
                    continue
                at = self._own_address(index, number, symbol, base)
                if at is None:
                    continue
                if symbol.bind == _STB_WEAK or symbol.section == _COMMON:
                    weak.setdefault(symbol.name, at)
                elif symbol.name in strong:
                    raise item.bad(f"the symbol '{symbol.name}' is defined by another object, too")
                else:
                    strong[symbol.name] = at
        return {**weak, **strong}

    def _own_address(self, index: int, number: int, symbol: _Symbol, base: int) -> int | None:
        """Where a symbol defined by its object lies; None for one in a section that is not kept."""
        if symbol.section == _ABS:
            return symbol.value
        if symbol.section == _COMMON:
            return base + self.common[index, number]
        at = self.place.get((index, symbol.section))
        return None if at is None else base + at + symbol.value

    def _addresses(self, index: int, item: _Object, base: int, exported: Mapping[str, int]) -> list[int | None]:
        used = {relocation.symbol for relocation in item.relocations}
        addresses: list[int | None] = []
        for number, symbol in enumerate(item.symbols):
            address: int | None
            if symbol.section == _UNDEF or (symbol.bind != _STB_LOCAL and symbol.name in exported):
                if number not in used or not symbol.name:
                    address = None
                elif symbol.name in exported:
                    address = exported[symbol.name]
                else:
                    address = external_address(symbol.name)
                    if address is None and symbol.bind == _STB_WEAK:
                        address = 0
                    if address is None and symbol.name != "_GLOBAL_OFFSET_TABLE_":
                        raise UnresolvedSymbol(name=item.name, symbol=symbol.name)
            else:
                address = self._own_address(index, number, symbol, base)
            addresses.append(address)
        return addresses

    def _relocate(self, index: int, item: _Object, memory: mmap.mmap, base: int, addresses: list[int | None]) -> None:
        for relocation in item.relocations:
            width = _WIDTH.get(relocation.kind)
            if width is None:
                raise item.bad(f"it has a relocation of the unknown kind {relocation.kind}")
            section = item.sections[relocation.section]
            if relocation.offset + width > section.size:
                raise item.bad("a relocation lies outside its section")
            symbol = addresses[relocation.symbol]
            if symbol is None:
                name = item.symbols[relocation.symbol].name
                raise item.bad(f"a relocation needs the symbol '{name}', which has no address")
            at = self.place[index, relocation.section] + relocation.offset
            match relocation.kind:
                case 1:
                    value, low, high = symbol + relocation.addend, -(2**63), 2**64
                case 24:
                    value, low, high = symbol + relocation.addend - (base + at), -(2**63), 2**63
                case 10:
                    value, low, high = symbol + relocation.addend, 0, 2**32
                case 11:
                    value, low, high = symbol + relocation.addend, -(2**31), 2**31
                case 9 | 41 | 42:
                    slot = self._got_slot(memory, symbol)
                    value, low, high = base + slot + relocation.addend - (base + at), -(2**31), 2**31
                case _:
                    value, low, high = symbol + relocation.addend - (base + at), -(2**31), 2**31
                    if not low <= value < high and relocation.kind == _R_PLT32:
                        value = base + self._stub(item, memory, symbol) + relocation.addend - (base + at)
            if not low <= value < high:
                name = item.symbols[relocation.symbol].name
                raise item.bad(f"the symbol '{name}' is too far away for a relocation of kind {relocation.kind}")
            memory[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")

    def _got_slot(self, memory: mmap.mmap, address: int) -> int:
        slot = self.got.get(address)
        if slot is None:
            slot = self.got[address] = self.got_at
            self.got_at += 8
            memory[slot : slot + 8] = (address & (2**64 - 1)).to_bytes(8, "little")
        return slot

    def _stub(self, item: _Object, memory: mmap.mmap, address: int) -> int:
        """Offset of `jmp *[rip]` to a function farther than 2 GiB."""
        slot = self.stubs.get(address)
        if slot is None:
            slot = self.stubs[address] = self.stub_at
            self.stub_at += 16
            if self.stub_at > self.ends[_CODE]:
                raise item.bad("it needs more far calls than it has external symbols")
            memory[slot : slot + 14] = b"\xff\x25\0\0\0\0" + (address & (2**64 - 1)).to_bytes(8, "little")
        return slot

    def _protect(self, base: int) -> None:
        starts = (0, *self.ends[:2])
        for part, protection in ((_CODE, mmap.PROT_READ | mmap.PROT_EXEC), (_CONST, mmap.PROT_READ)):
            size = self.ends[part] - starts[part]
            if size and libc().mprotect(base + starts[part], size, protection) != 0:
                raise NativeMemory(what="executable memory", reason=f"mprotect failed, errno {ctypes.get_errno()}")


def _part(section: _Section) -> int:
    if section.flags & _EXEC:
        return _CODE
    return _DATA if section.flags & _WRITE else _CONST


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of this process, with the signatures used here."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.mprotect.restype = ctypes.c_int
    library.free.argtypes = (ctypes.c_void_p,)
    library.free.restype = None
    return library


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    found = [libc()]
    for name in ("libm.so.6", "libgcc_s.so.1"):  # libgcc: conversions of half and bfloat16 without hardware
        try:
            found.append(ctypes.CDLL(name))
        except OSError:
            continue
    return tuple(found)


@functools.cache
def external_address(name: str) -> int | None:
    """Address of a function of the C library; None if there is none of that name."""
    if not name.isascii() or "\0" in name:
        return None
    for library in _libraries():
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except (AttributeError, ValueError):
            continue
    return None
