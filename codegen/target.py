"""What the compiler knows about the machine it generates code for.

Three instruction-set levels are supported. A `Target` is pure data: it names the LLVM processor and features, the
vector shape the tile strategies should use, and the CPU flags the runtime must find before it runs the code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache

from dlc.errors import BadInput


class UnknownTarget(BadInput):
    """A target name is not one of the known levels."""

    code = "DLC0460"
    template = "unknown target '{name}': known are {known}, 'host', and these with '+feature' appended"
    hint = "'dlc compile MODEL --target sm_80' (or sm_90) writes PTX; nothing else takes these"


@dataclass(frozen=True, slots=True)
class Target:
    """An x86-64 level with the sizes that code generation and the cost model ask for.

    Attributes:
        name: 'avx512', 'avx2' or 'baseline'.
        cpu: LLVM processor name.
        llvm_features: LLVM feature string, `+a,+b,-c`.
        features: flags, spelled as /proc/cpuinfo spells them, without which the code must not run.
        optional: extra flags beyond the level's own that code may use (they are then part of `features` too).
        vector_bits: width of one vector register.
        vector_registers: how many architectural vector registers there are.
        l1_bytes, l2_bytes, l3_bytes: data cache sizes; L1 and L2 per core, L3 shared.
        line_bytes: cache line.
        peak_gflops: f32 fused multiply-add peak of one core, 2 operations per FMA; 0 when not measured.
        read_gbytes: memory read bandwidth of one core in GB/s; 0 when not measured.
    """

    name: str
    cpu: str
    llvm_features: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    optional: tuple[str, ...] = ()
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 16 << 20
    line_bytes: int = 64
    peak_gflops: float = 0.0
    read_gbytes: float = 0.0

    @property
    def lanes(self) -> int:
        """Lanes of f32 in one vector register: 16, 8 or 4."""
        return self.vector_bits // 32

    def lanes_of(self, bits: int) -> int:
        """Lanes of an element of `bits` bits in one vector register."""
        return self.vector_bits // max(bits, 8)

    def has(self, feature: str) -> bool:
        """Whether generated code may use the CPU flag `feature`."""
        return feature in self.features

    @property
    def has_fma(self) -> bool:
        """Whether multiply-add is one rounding (avx2 and avx512) or two (baseline)."""
        return "fma" in self.features

    @property
    def key(self) -> str:
        """What of the target decides the generated code; part of every cache key."""
        return f"{self.name}{''.join('+' + f for f in self.optional)}/{self.cpu}/{self.llvm_features}"

    def __str__(self) -> str:
        return self.name + "".join("+" + flag for flag in self.optional)


# x86-64-v2 rather than plain x86-64: SSE4.1's rounding, blends and 32-bit integer products are in every 64-bit
# processor sold since 2011, and without them half of the vector library would need a second implementation.
_BASELINE = ("sse2", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16")
_AVX2 = (*_BASELINE, "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")

BASELINE = Target("baseline", "x86-64-v2", "", _BASELINE, vector_bits=128, vector_registers=16)
AVX2 = Target("avx2", "x86-64-v3", "", _AVX2, vector_bits=256, vector_registers=16)
AVX512 = Target("avx512", "x86-64-v4", "-prefer-256-bit", _AVX512, vector_bits=512, vector_registers=32)
TARGETS = {t.name: t for t in (AVX512, AVX2, BASELINE)}

# /proc/cpuinfo's name -> LLVM's name, for what some AVX-512 machines have and others lack.
OPTIONAL_FEATURES = {
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vpopcntdq": "avx512vpopcntdq",
}


def with_features(target: Target, flags: tuple[str, ...]) -> Target:
    """`target` with optional CPU flags switched on; flags are spelled as /proc/cpuinfo spells them."""
    flags = tuple(sorted(set(flags) - set(target.optional)))
    if not flags:
        return target
    unknown = [f for f in flags if f not in OPTIONAL_FEATURES or target.name != "avx512"]
    if unknown:
        raise UnknownTarget(name=f"{target}+{'+'.join(unknown)}", known=", ".join(TARGETS))
    llvm = ",".join(filter(None, (target.llvm_features, *("+" + OPTIONAL_FEATURES[f] for f in flags))))
    return replace(
        target, llvm_features=llvm, features=target.features + flags, optional=tuple(sorted(target.optional + flags))
    )


@cache
def host_flags() -> frozenset[str]:
    """The CPU flags of this machine, as the kernel reports them (those the operating system enabled)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset(_BASELINE)


def _cache_bytes(level: int, fallback: int) -> int:
    root = "/sys/devices/system/cpu/cpu0/cache"
    try:
        for index in os.listdir(root):
            folder = os.path.join(root, index)
            if not index.startswith("index"):
                continue
            kind = _read(f"{folder}/type")
            if _read(f"{folder}/level") == str(level) and kind in ("Data", "Unified"):
                size = _read(f"{folder}/size")
                return int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    except (OSError, ValueError):
        pass
    return fallback


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


@cache
def host_target() -> Target:
    """The widest level this machine runs, with its optional features and cache sizes."""
    flags = host_flags()
    base = next((t for t in TARGETS.values() if flags.issuperset(t.features)), BASELINE)
    if base.name == "avx512":
        base = with_features(base, tuple(f for f in OPTIONAL_FEATURES if f in flags))
    return replace(
        base,
        l1_bytes=_cache_bytes(1, base.l1_bytes),
        l2_bytes=_cache_bytes(2, base.l2_bytes),
        l3_bytes=_cache_bytes(3, base.l3_bytes),
    )


def parse_target(text: str) -> Target:
    """`avx512`, `avx2`, `baseline`, `avx512+avx512_vnni`, or `host` -> Target (with the host's cache sizes)."""
    name, *flags = text.split("+")
    if name in ("host", "native", ""):
        return with_features(host_target(), tuple(flags))
    if name not in TARGETS:
        raise UnknownTarget(name=text, known=", ".join(TARGETS))
    host = host_target()
    base = replace(TARGETS[name], l1_bytes=host.l1_bytes, l2_bytes=host.l2_bytes, l3_bytes=host.l3_bytes)
    return with_features(base, tuple(flags))
