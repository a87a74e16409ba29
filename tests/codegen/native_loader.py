"""A small in-process ELF loader for the tests of code generation (the product's own loader lives in the runtime)."""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import struct

_LIBC = ctypes.CDLL(None)
_LIBM = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")


def undefined_symbols(data: bytes) -> list[str]:
    return [name for name, section, *_ in _symbols(data) if section == 0 and name]


def load(data: bytes) -> dict[str, int]:
    """Map the object executable; global symbol -> address. The mapping lives as long as the process."""
    sections = _sections(data)
    size, at = 0, {}
    for i, s in enumerate(sections):
        if s[2] & 2 and s[5]:
            size = -(-size // max(s[8], 64)) * max(s[8], 64)
            at[i] = size
            size += s[5]
    stub = got = -(-size // 16) * 16
    memory = mmap.mmap(-1, -(-(size + 8192) // 4096) * 4096)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for i, offset in at.items():
        s = sections[i]
        if s[1] != 8:
            memory[offset : offset + s[5]] = data[s[4] : s[4] + s[5]]
    table, exported = [], {"": base}
    exported.clear()
    for name, section, value, info in _symbols(data):
        if section == 0 and name:
            table.append(_external(name))
        elif section in at:
            table.append(base + at[section] + value)
            if info >> 4:
                exported[name] = table[-1]
        else:
            table.append(value)
    stubs: dict[tuple[int, bool], int] = {}
    stub = got
    for s in sections:
        if s[1] != 4 or s[7] not in at:
            continue
        for k in range(s[5] // 24):
            offset, info, addend = struct.unpack_from("<QQq", data, s[4] + 24 * k)
            kind, symbol = info & 0xFFFFFFFF, table[info >> 32]
            place = at[s[7]] + offset
            if kind == 1:
                struct.pack_into("<Q", memory, place, (symbol + addend) & (2**64 - 1))
                continue
            if kind not in (2, 4, 9, 24, 41, 42):
                raise ValueError(f"relocation {kind}")
            value = symbol + addend - base - place
            pointer = kind in (9, 41, 42)
            if kind != 24 and (pointer or not -(2**31) <= value < 2**31):
                if (symbol, pointer) not in stubs:
                    code = b"" if pointer else b"\xff\x25\0\0\0\0"
                    memory[stub : stub + len(code) + 8] = code + struct.pack("<Q", symbol)
                    stubs[symbol, pointer] = base + stub
                    stub += 16
                value = stubs[symbol, pointer] + addend - base - place
            struct.pack_into("<q" if kind == 24 else "<i", memory, place, value)
    assert _LIBC.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(memory)), 5) == 0
    _KEEP.append(memory)
    return exported


_KEEP: list[mmap.mmap] = []


def _external(name: str) -> int:
    for library in (_LIBM, _LIBC):
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    if name == "_GLOBAL_OFFSET_TABLE_":
        return 0
    raise KeyError(f"unresolved symbol {name}")


def _sections(data: bytes) -> list[tuple[int, ...]]:
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, _ = struct.unpack_from("<HHH", data, 58)
    return [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]


def _symbols(data: bytes) -> list[tuple[str, int, int, int]]:
    sections = _sections(data)
    table = next(s for s in sections if s[1] == 2)
    strings = sections[table[6]][4]
    found = []
    for k in range(table[5] // 24):
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, table[4] + 24 * k)
        end = data.index(b"\0", strings + name)
        found.append((data[strings + name : end].decode(), section, value, info))
    return found
