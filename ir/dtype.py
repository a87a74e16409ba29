"""Element types: one table with bits, NumPy storage and kind. Low-precision types are added here, not beside it.

A type narrower than what NumPy has is *coded*: an array of it holds one code per byte, as a record of one `u1` field that has the
type's name, so that the array says what its codes mean (`dlc.ir.codes`). `dlc.ir.packing` packs codes without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CODE = "code"
"""`DType.storage` of a coded type."""


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """How the bits of a small float are split, and which codes are no finite numbers.

    Attributes:
        exponent, mantissa: bits of the two fields, below the sign.
        bias: a code with exponent field x > 0 is (1 + m / 2^mantissa) * 2^(x - bias); with x = 0 it is subnormal.
        rule: `finite` (every code is a number, of both signs of 0), `nan` (all ones is NaN, there is no infinity: OCP e4m3),
            `ieee` (the largest exponent is for infinity and NaN: OCP e5m2), `fnuz` (no infinity, no -0: its code is NaN),
            `scale` (no sign and no 0: a power of two, all ones is NaN: MX scales).
    """

    exponent: int
    mantissa: int
    bias: int
    rule: str = "finite"


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: its name in the text form (`f32`, `u8`, `bool`).
        kind: `f` float, `i` signed, `u` unsigned, `b` boolean, `c` codes that are read by a cast alone (ternary, bipolar).
        bits: width of a value; storage may be wider (bool is stored in a byte).
        storage: NumPy dtype name that holds it (an `ml_dtypes` name where NumPy has none), or `CODE`.
        native: whether kernels can be generated for it; coded types become bytes and casts first.
        format: the bits of a small float.
        per_byte: how many codes a packed byte holds, where that is not 8 / bits.
    """

    name: str
    kind: str
    bits: int
    storage: str
    native: bool = True
    format: FloatFormat | None = None
    per_byte: int | None = None

    def __hash__(self) -> int:
        return hash(self.name)  # Python keeps a string's hash, and every node's hash asks for that of its type

    def __str__(self) -> str:
        return self.name

    @property
    def is_coded(self) -> bool:
        """Whether arrays hold codes, one in a byte."""
        return self.storage == CODE

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy dtype of a stored array."""
        if self.storage == CODE:
            return np.dtype([(self.name, np.uint8)])
        try:
            return np.dtype(self.storage)
        except TypeError:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, self.storage))

    @property
    def bytes(self) -> int:
        """Bytes of one stored element."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        return self.kind in "iu"

    @property
    def is_bipolar(self) -> bool:
        """Whether the numbers are the odd ones, symmetric around 0."""
        return self.kind == "c" and self.codes != 3

    @property
    def lowest(self) -> int:
        """Least value of a type of whole numbers."""
        if self.kind == "c":
            return -self.highest
        return -(1 << (self.bits - 1)) if self.kind == "i" else 0

    @property
    def highest(self) -> int:
        """Greatest value of a type of whole numbers."""
        if self in (T2, T5):
            return 1
        return (1 << (self.bits - (self.kind == "i"))) - 1

    @property
    def codes(self) -> int:
        """How many codes a coded type has: 0 to this less 1."""
        return 3 if self in (T2, T5) else 1 << self.bits


F64 = DType("f64", "f", 64, "float64")
F32 = DType("f32", "f", 32, "float32")
F16 = DType("f16", "f", 16, "float16")
BF16 = DType("bf16", "f", 16, "bfloat16")
I64 = DType("i64", "i", 64, "int64")
I32 = DType("i32", "i", 32, "int32")
I16 = DType("i16", "i", 16, "int16")
I8 = DType("i8", "i", 8, "int8")
U64 = DType("u64", "u", 64, "uint64")
U32 = DType("u32", "u", 32, "uint32")
U16 = DType("u16", "u", 16, "uint16")
U8 = DType("u8", "u", 8, "uint8")
BOOL = DType("bool", "b", 8, "bool")


def _float(exponent: int, mantissa: int, rule: str = "finite", bias: int | None = None, suffix: str = "") -> DType:
    """The float of one sign bit and these fields; IEEE's bias unless another is given."""
    usual = (1 << (exponent - 1)) - 1
    shape = FloatFormat(exponent, mantissa, usual if bias is None else bias, rule)
    bits = exponent + mantissa + (rule != "scale")
    return DType(f"f{bits}e{exponent}m{mantissa}{suffix}", "f", bits, CODE, native=False, format=shape)


F8E4M3 = _float(4, 3, "nan")
F8E5M2 = _float(5, 2, "ieee")
F8E8M0 = _float(8, 0, "scale")
_OCP = {t.name: t for t in (F8E4M3, F8E5M2)}
_SPLITS = [_float(e, bits - 1 - e) for bits in range(3, 9) for e in range(1, bits)]
FLOATS = tuple(_OCP.get(t.name, t) for t in _SPLITS)
"""Every split of 3 to 8 bits with a sign. All but OCP's e4m3 and e5m2 are finite, as OCP's MX e2m1, e2m3 and e3m2 are."""
F4E2M1, F6E2M3, F6E3M2 = (next(t for t in FLOATS if t.name == n) for n in ("f4e2m1", "f6e2m3", "f6e3m2"))
VARIANTS = (
    _float(4, 3, "fnuz", 8, "fnuz"),
    _float(5, 2, "fnuz", 16, "fnuz"),
    _float(4, 3, "fnuz", 11, "b11fnuz"),
    _float(4, 3, "ieee", suffix="ieee"),
    _float(3, 4, "ieee", suffix="ieee"),
    F8E8M0,
)
"""Floats of other makers, and MX's scales."""
UNSIGNED = tuple(DType(f"u{b}", "u", b, CODE, native=False) for b in range(1, 8))
SIGNED = tuple(DType(f"i{b}", "i", b, CODE, native=False) for b in range(1, 8))
BIPOLAR = tuple(DType(f"b{b}", "c", b, CODE, native=False) for b in range(1, 9))
"""Odd numbers, symmetric around 0: code c is 2c - (2^bits - 1)."""
T2 = DType("t2", "c", 2, CODE, native=False)
T5 = DType("t5", "c", 2, CODE, native=False, per_byte=5)
"""Ternary: code c is c - 1; `t2` is packed in 2 bits, `t5` 5 in a byte."""
U1, U4, I4 = UNSIGNED[0], UNSIGNED[3], SIGNED[3]

CODED = (*UNSIGNED, *SIGNED, *BIPOLAR, T2, T5, *FLOATS, *VARIANTS)
DTYPES: dict[str, DType] = {
    t.name: t for t in (F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, *CODED)
}
_BY_STORAGE = {t.storage: t for t in DTYPES.values() if not t.is_coded}
ML_DTYPES: dict[str, DType] = {
    **{f"uint{t.bits}": t for t in UNSIGNED if t.bits in (1, 2, 4)},
    **{f"int{t.bits}": t for t in SIGNED if t.bits in (1, 2, 4)},
    "float4_e2m1fn": F4E2M1,
    "float6_e2m3fn": F6E2M3,
    "float6_e3m2fn": F6E3M2,
    "float8_e4m3fn": F8E4M3,
    "float8_e5m2": F8E5M2,
    **dict(
        zip(
            (
                "float8_e4m3fnuz",
                "float8_e5m2fnuz",
                "float8_e4m3b11fnuz",
                "float8_e4m3",
                "float8_e3m4",
                "float8_e8m0fnu",
            ),
            VARIANTS,
            strict=True,
        )
    ),
}
"""The coded types that `ml_dtypes` has, by its names; the codes are the same, in the low bits of a byte."""


def from_numpy(dtype: Any) -> DType:
    """The element type that arrays of NumPy's `dtype` hold, `ml_dtypes`' small types included; KeyError when there is none."""
    given = np.dtype(dtype)
    if given.names is not None and len(given.names) == 1:
        return DTYPES[given.names[0]]
    return ML_DTYPES[given.name] if given.name in ML_DTYPES else _BY_STORAGE[given.name]


def default_accumulator(dtype: DType) -> DType:
    """The type a sum or product over `dtype` is accumulated in: f32 for the small floats, else the type itself."""
    return F32 if dtype.is_float and dtype.bits < 32 else dtype
