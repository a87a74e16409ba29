"""Attention as text, in three passes: what the tests of streaming kernels are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Attention of H heads, P queries, M keys, E and F values wide; an extent may be a symbol.

    Attributes:
        score: what is done to the products `QK[h, p, m]` before the softmax.
        where: the keys that a query sees.
        params: parameters besides Q, K and V.
        key: the head of K and V that a query's head reads.
        flat: whether heads lie inside the rows of Q, `[p, E*h + e]`.
        order: storage order of the result.
        results: what leaves besides the output, by name.
    """

    H: int = 2
    P: int | str = 19
    M: int | str = 45
    E: int = 5
    F: int = 3
    score: str = "QK[h, p, m] * 0.5"
    where: str = ""
    params: tuple[str, ...] = ()
    dtype: str = "f32"
    key: str = "h"
    heads: int | None = None
    flat: bool = False
    order: str = ""
    results: tuple[str, ...] = ()
    limit: str = "max"

    @property
    def head(self) -> str:
        keys = self.heads or self.H
        q = f"[{self.P}, {self.H * self.E}]" if self.flat else f"[{self.H}, {self.P}, {self.E}]"
        given = [f"Q: {self.dtype}{q}", f"K: {self.dtype}[{keys}, {self.M}, {self.E}]", f"V: {self.dtype}[{keys}, {self.M}, {self.F}]"]
        symbols = [f"{n} in 1.." for n in (self.P, self.M) if isinstance(n, str)]
        return (
            f"cascade attention({', '.join((*given, *self.params))}) -> ({', '.join(('O', *self.results))})"
            + (f" symbols ({', '.join(symbols)})" if symbols else "")
        )

    def __str__(self) -> str:
        hp, m = f"h:{self.H}, p:{self.P}", f"m:{self.M}"
        where = f" where {self.where}" if self.where else ""
        q = f"Q[p, {self.E}*h + e]" if self.flat else "Q[h, p, e]"
        k, v = (f"{t}[{self.key}, m, {i}]" for t, i in (("K", "e"), ("V", "f")))
        work = "f64" if self.dtype == "f64" else "f32"
        if self.dtype in ("bf16", "f16"):
            q, k, v = (f"cast<f32>({a})" for a in (q, k, v))
        exponent = "S[h, p, m] - GM[h, p]" if self.limit == "max" else "GM[h, p] - S[h, p, m]"
        out = "AV[h, p, f] / SD[h, p]"
        if self.dtype != work:
            out = f"cast<{self.dtype}>({out})"
        return f"""{self.head} {{
  QK[{hp}, {m}]: {work} = sum(e:{self.E}) {q} * {k}{where}
  S[{hp}, {m}]: {work} = {self.score}
  GM[{hp}]: {work} = {self.limit}({m}) S[h, p, m]
  SN[{hp}, {m}]: {work} = exp({exponent})
  SD[{hp}]: {work} = sum({m}) SN[h, p, m]
  L[{hp}]: {work} = GM[h, p] + log(SD[h, p])
  AV[{hp}, f:{self.F}]: {work} = sum({m}) SN[h, p, m] * {v}
  O[{hp}, f:{self.F}]: {self.dtype}{self.order} = {out}
}}"""
