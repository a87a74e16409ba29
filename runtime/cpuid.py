"""The processor asked itself: which of the instructions that generated code may use does CPUID report?

The kernel's list (`/proc/cpuinfo`) is about the machine; a process that an emulator of a lesser processor runs (qemu-user) reads
it there all the same, and would die of an illegal instruction.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID and XGETBV; volume 1, 13.3 (XCR0).
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

_CPUID: Final = bytes.fromhex("53 4989D0 89F8 89F1 0FA2 418900 41895804 41894808 4189500C 5B C3")
"""f(leaf, subleaf, u32 out[4]): out = eax, ebx, ecx, edx."""
_XGETBV: Final = bytes.fromhex("31C9 0F01D0 C3")
"""f(): the low half of XCR0, the states that the system saves."""

_EBX, _ECX, _EDX, _EAX = 1, 2, 3, 0
_FEATURES: Final[dict[tuple[int, int, int], dict[int, str]]] = {
    (1, 0, _EDX): {25: "sse", 26: "sse2"},
    (1, 0, _ECX): {
        0: "pni", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse41", 20: "sse42", 22: "movbe", 23: "popcnt", 28: "avx", 29: "f16c",
    },
    (7, 0, _EBX): {
        3: "bmi1", 5: "avx2", 8: "bmi2", 16: "avx512f", 17: "avx512dq", 21: "avx512ifma", 28: "avx512cd", 30: "avx512bw",
        31: "avx512vl",
    },
    (7, 0, _ECX): {1: "avx512vbmi", 6: "avx512vbmi2", 8: "gfni", 11: "avx512vnni", 12: "avx512bitalg", 14: "avx512vpopcntdq"},
    (7, 1, _EAX): {4: "avxvnni", 5: "avx512bf16"},
    (0x80000001, 0, _ECX): {0: "lahflm", 5: "abm"},
}  # fmt: skip
"""(leaf, subleaf, register) -> bit -> normalised name."""
_YMM_NAMES: Final = frozenset({"avx", "avx2", "fma", "f16c", "avxvnni"})
_YMM, _ZMM = 0b110, 0b11100110
"""States in XCR0 without which registers of 256 and of 512 bits cannot be used."""
_OSXSAVE: Final = 27


def known_features() -> frozenset[str]:
    """Names that `reported_features` can tell of, normalised as in `dlc.runtime.cpu`."""
    return frozenset(name for bits in _FEATURES.values() for name in bits.values())


def reported_features() -> frozenset[str] | None:
    """Of `known_features`, those that code in this process may use; None where executable memory is refused."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(_CPUID.ljust(64, b"\xcc") + _XGETBV)
        view = (ctypes.c_char * mmap.PAGESIZE).from_buffer(page)
        start = ctypes.addressof(view)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start)
    xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint32)(start + 64)
    out = (ctypes.c_uint32 * 4)()

    def register(leaf: int, subleaf: int, which: int) -> int:
        cpuid(leaf & 0x80000000, 0, ctypes.addressof(out))
        if leaf > out[0]:
            return 0
        if subleaf:
            cpuid(leaf, 0, ctypes.addressof(out))
            if subleaf > out[0]:
                return 0
        cpuid(leaf, subleaf, ctypes.addressof(out))
        return int(out[which])

    found = {n for key, bits in _FEATURES.items() for bit, n in bits.items() if register(*key) >> bit & 1}
    saved = xgetbv() if register(1, 0, _ECX) >> _OSXSAVE & 1 else 0
    if saved & _YMM != _YMM:
        found -= _YMM_NAMES
    if saved & _ZMM != _ZMM:
        found = {n for n in found if not n.startswith("avx512")}
    return frozenset(found)


__all__ = ["known_features", "reported_features"]
