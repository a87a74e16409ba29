"""The matrices of Cook-Toom's short convolutions F(m, r): m outputs of an r-tap filter by m + r - 1 products.

    y = A^T [ (G g) * (B^T d) ]        d: m + r - 1 inputs, g: r taps, y[i] = sum(k) d[i + k] g[k]

The points are 0, 1, -1, 2, -2, 1/2, -1/2 and infinity, so that A and B hold small numbers.

Source: Winograd, Arithmetic Complexity of Computations (SIAM 1980); Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks (arXiv 1509.09308), section 4; the transposition of Toom-Cook in Blahut, Fast Algorithms (2010), chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]
POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))


@dataclass(frozen=True, slots=True)
class CookToom:
    """F(m, r), with n = m + r - 1.

    Attributes:
        at: [m][n], output transform.
        g: [n][r], filter transform.
        bt: [n][n], input transform.
    """

    m: int
    r: int
    at: Matrix
    g: Matrix
    bt: Matrix

    @property
    def n(self) -> int:
        return self.m + self.r - 1

    @property
    def amplification(self) -> float:
        """How much larger a bound of the rounding errors is than the direct sum's, per dimension, when all terms may be alike.

        max over outputs of sum |A^T| (|G| 1) (|B^T| 1), inputs and taps of size 1, over the direct form's r.
        """
        a, g, b = (np.abs(np.asarray(x, dtype=float)) for x in (self.at, self.g, self.bt))
        return float((a @ (g.sum(1) * b.sum(1))).max()) / self.r


@cache
def cook_toom(m: int, r: int) -> CookToom:
    """The matrices of F(m, r), exact.

    Raises:
        ValueError: there are not enough points for m + r - 1 products.
    """
    n = m + r - 1
    if n - 1 > len(POINTS):
        raise ValueError(f"F({m}, {r}) needs {n - 1} points, of which {len(POINTS)} are known")
    points = POINTS[: n - 1]
    at = tuple(
        (*(p**i for p in points), Fraction(int(i == m - 1)))
        for i in range(m)
    )  # fmt: skip
    g, bt = [], []
    for j, p in enumerate(points):
        others = [q for k, q in enumerate(points) if k != j]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        g.append(tuple(p**k / scale for k in range(r)))
        bt.append((*_polynomial(others), Fraction(0)))
    g.append(tuple(Fraction(int(k == r - 1)) for k in range(r)))
    bt.append(_polynomial(points))
    return CookToom(m, r, at, tuple(g), tuple(bt))


def _polynomial(roots: tuple[Fraction, ...] | list[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of prod (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        raised = [Fraction(0), *found]
        found = [up - root * down for up, down in zip(raised, [*found, Fraction(0)], strict=True)]
    return tuple(found)
