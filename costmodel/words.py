"""What it takes to multiply numbers of few bits that lie in 32-bit words: bytes by fours, or single bits counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

_WORD_BITS, _BYTES = 32, 4
_UNKNOWN_ROWS = 16


@dataclass(frozen=True)
class WordCosts:
    """Costs of a register of words, its operands there; 1 is that of one `vpdpbusd`.

    Attributes:
        dot: products of four bytes of each word added up.
        bits: bits that two words have in common, counted and added up.
    """

    dot: int = 1
    bits: int = 2

    def planes_pay(self, row_bits: int, weight_bits: int, terms: int, rows: int | None) -> bool:
        """Whether a sum takes less as bits, a pair of planes each, than as bytes that are taken apart first.

        Args:
            terms: of the sum.
            rows: that share what was taken apart; None where it is not known how many.
        """
        apart = 0 if weight_bits == 8 else 2 if 8 % weight_bits == 0 else 3
        word = self.dot + Fraction(apart, max(1, min(rows or _UNKNOWN_ROWS, _UNKNOWN_ROWS)))
        as_bits = row_bits * weight_bits * self.bits * -(-terms // _WORD_BITS)
        return as_bits < word * -(-terms // _BYTES)


def word_costs(has: Callable[[str], bool]) -> WordCosts:
    """The costs on a processor with these features.

    Measured on a Zen 4 in its caches, 16 rows by 4096 x 4096 weights, where 9 for `dot` are the instructions of `codegen/dot_to_mlir.py`:
    a pair of planes took 1.8 with VPOPCNTDQ and 13.6 with AVX2. Not measured: 8, the instructions of a table and `vpdpbusd`.
    """
    vnni = has("avx512_vnni")
    return WordCosts(dot=1 if vnni else 9, bits=2 if has("avx512_vpopcntdq") else 8 if vnni else 14)


__all__ = ["WordCosts", "word_costs"]
