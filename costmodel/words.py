"""What it takes to multiply numbers of few bits that lie in 32-bit words: bytes by fours, or single bits counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

_WORD_BITS, _BYTES = 32, 4
_UNKNOWN_ROWS = 16


@dataclass(frozen=True)
class WordCosts:
    """Instructions for a register of words, its operands there.

    Attributes:
        dot: products of four bytes of each word added up.
        bits: bits that two words have in common, counted and added up.
    """

    dot: int = 1
    bits: int = 3

    def planes_pay(self, row_bits: int, weight_bits: int, terms: int, rows: int | None) -> bool:
        """Whether a sum takes fewer instructions as bits, a pair of planes each, than as bytes that are taken apart first.

        Args:
            terms: of the sum.
            rows: that share what was taken apart; None where it is not known how many.
        """
        apart = 0 if weight_bits == 8 else 2 if 8 % weight_bits == 0 else 3
        word = self.dot + Fraction(apart, max(1, min(rows or _UNKNOWN_ROWS, _UNKNOWN_ROWS)))
        as_bits = row_bits * weight_bits * self.bits * -(-terms // _WORD_BITS)
        return as_bits < word * -(-terms // _BYTES)


def word_costs(has: Callable[[str], bool]) -> WordCosts:
    """The costs on a processor with these features, as `codegen/dot_to_mlir.py` writes the two."""
    vnni = has("avx512_vnni")
    return WordCosts(dot=1 if vnni else 9, bits=3 if has("avx512_vpopcntdq") else 8 if vnni else 10)


__all__ = ["WordCosts", "word_costs"]
