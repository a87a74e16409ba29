"""Traffic between memory and a cache: what a cascade moves, and what any program for it must move.

The lower bound is the greatest of

- compulsory traffic: every input that is read and every result, once;
- for a contraction whose result is stored, `2 B M N K / sqrt(S) - 2 S` words of a cache of S words (Hong & Kung, 1981, with the constant
  of Smith et al., arXiv 1702.02017). Windows that overlap R times count as a cache of S R (Chen et al., HPCA 2020);
- for a contraction whose result is consumed inside, where the elements of the result need not be moved: `B P M E^2 / S - S` words if
  S >= E^2, else `B P M E / sqrt(S) - 2 S` (Saha & Ye, arXiv 2402.07443, for attention with E = d). A pair takes the greater of E and F.

It is their maximum and not their sum, for one transfer may serve several of them. What is moved is computed as a blocked program does it:
the largest block of rows that the cache holds beside what streams past, and a fiber that needs several passes and does not fit
written out and read again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dlc.costmodel.contractions import Contraction, Pair, contractions, pairs
from dlc.costmodel.work import cascade_bytes
from dlc.ir.extent import IntExpr, evaluate, int_expr, show_extent
from dlc.ir.pass_count import PassCount, Splits, all_passes
from dlc.ir.program import Cascade, cascade_types


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on the words moved that one contraction, or a pair of them, forces.

    Attributes:
        einsums: whose.
        rows: products of two fibers, batch included: B M N.
        width: E, their length.
        stored: whether the result leaves the cascade.
        other: F, the width of the pair's second operand.
        reuse: how often windows overlap.
        bytes: of a word.
    """

    einsums: tuple[str, ...]
    rows: IntExpr
    width: IntExpr
    stored: bool
    other: IntExpr
    reuse: IntExpr
    bytes: int

    def bytes_moved(self, cache_bytes: int, env: Mapping[str, int]) -> float:
        """Bytes at values of the symbols (`#m`); never below 0."""
        words = cache_bytes / self.bytes
        rows, width, other, reuse = (_number(x, env) for x in (self.rows, self.width, self.other, self.reuse))
        widest = max(width, other)
        if self.stored:
            least = 2 * rows * width / math.sqrt(words * reuse) - 2 * words
        elif words >= widest * widest:
            least = rows * widest * widest / (words * reuse) - words
        else:
            least = rows * widest / math.sqrt(words * reuse) - 2 * words
        return max(0.0, least) * self.bytes

    def __str__(self) -> str:
        """The leading term in words, with S for the cache's."""
        rows, width = show_extent(self.rows), show_extent(self.width)
        room = "S" if self.reuse.const == 1 else f"(S*{show_extent(self.reuse)})"
        if self.stored:
            return f"2*({rows})*({width})/sqrt({room})"
        widest = f"({width})" if self.other == self.width else f"max({width}, {show_extent(self.other)})"
        return f"{rows}*{widest}^2/{room} if S >= {widest}^2 else {rows}*{widest}/sqrt({room})"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic of a cascade.

    Attributes:
        compulsory: bytes of inputs read and results, each element once.
        bounds: what the contractions force.
        rows: the pass counts, which say what has to stay live or be moved again.
        cascade: whose.
    """

    cascade: Cascade
    compulsory: IntExpr
    bounds: tuple[Bound, ...]
    rows: tuple[PassCount, ...]

    def bound_bytes(self, cache_bytes: int, symbols: Mapping[str, int]) -> float:
        """The lower bound at values of the symbols (`m` or `#m`)."""
        env = _env(symbols)
        return max([_number(self.compulsory, env), *(b.bytes_moved(cache_bytes, env) for b in self.bounds)])

    def moved_bytes(self, cache_bytes: int, symbols: Mapping[str, int]) -> float:
        """What a blocked program moves: compulsory traffic, operands streamed again, fibers spilled."""
        env = _env(symbols)
        total = _number(self.compulsory, env)
        paired = pairs(self.cascade)
        for pair in paired:
            total += _pair_again(pair, _live_fiber(self.rows, pair.first), cache_bytes, env)
        inside = {c.out for p in paired for c in (p.first, p.second)}
        for c in contractions(self.cascade):
            if c.out not in inside:
                total += _contraction_again(c, cache_bytes / c.bytes, env) * c.bytes
        return total + self._spilled(cache_bytes, env, {p.first.out for p in paired})

    def ratio(self, cache_bytes: int, symbols: Mapping[str, int]) -> float:
        """Moved by bound; 1 is optimal."""
        bound = self.bound_bytes(cache_bytes, symbols)
        return self.moved_bytes(cache_bytes, symbols) / bound if bound else 1.0

    def formula(self) -> str:
        """The bound as text, in bytes, with S for the words of the cache."""
        terms = [show_extent(self.compulsory), *(f"{b.bytes}*({b})" for b in self.bounds)]
        return terms[0] if len(terms) == 1 else f"max({', '.join(terms)})"

    def _spilled(self, cache_bytes: int, env: Mapping[str, int], counted: set[str]) -> float:
        """Fibers too long for the cache: an intermediate one is written once, and each is read again at every barrier."""
        types = cascade_types(self.cascade)
        moved: dict[tuple[str, int], float] = {}
        again = {b.through for row in self.rows if not row.partition for b in row.barriers}
        for row in self.rows:
            if row.partition or row.tensor not in again or row.tensor in counted:
                continue
            if not row.footprint.whole or _number(row.footprint.bytes, env) <= cache_bytes:
                continue
            size = _number(types[row.tensor].elements, env) * types[row.tensor].dtype.bytes
            inside = row.tensor not in {p.name for p in self.cascade.params} and row.tensor not in self.cascade.results
            for barrier in row.barriers:
                if barrier.through == row.tensor:
                    moved[row.tensor, barrier.level] = size
            if inside:
                moved[row.tensor, 0] = size
        return sum(moved.values())


def traffic(cascade: Cascade, splits: Splits = ()) -> Traffic:
    """The traffic of running `cascade` once."""
    paired = pairs(cascade)
    bounds = []
    for p in paired:
        size = min(p.first.bytes, p.second.bytes)
        rows = p.first.batch * p.first.m * p.first.n
        bounds.append(Bound((p.first.out, p.second.out), rows, p.first.k, False, p.f, int_expr(1), size))
    inside = {c.out for p in paired for c in (p.first, p.second)}
    for c in contractions(cascade):
        if c.out not in inside:
            bounds.append(Bound((c.out,), c.batch * c.m * c.n, c.k, c.stored, c.k, c.reuse, c.bytes))
    return Traffic(cascade, cascade_bytes(cascade), tuple(bounds), all_passes(cascade, splits))


def _live_fiber(rows: tuple[PassCount, ...], first: Contraction) -> int:
    """Passes over the fibers of the pair's inner tensor along its right ranks."""
    return max(
        (r.passes for r in rows if r.tensor == first.out and set(r.dims) <= set(first.right_ranks) and not r.partition),
        default=1,
    )


def _pair_again(pair: Pair, passes: int, cache_bytes: int, env: Mapping[str, int]) -> float:
    """Bytes beyond the compulsory: the right operands once more for each further block of rows, or the inner tensor spilled.

    A block of b rows keeps, per row, E + F words and two running scalars, and across a barrier the whole fiber of M; one row of the
    right operands streams past. FuseMax's closed form of DRAM traffic, with b in place of P1 N. The other way runs the two
    contractions one after the other, and moves their inner tensor once for each pass.
    """
    first, size = pair.first, pair.first.bytes
    words = cache_bytes / size
    batch, p, m, e = (_number(x, env) for x in (first.batch, first.m, first.n, first.k))
    f = _number(pair.f, env)
    if (e + f) * m + e + f + 2 + (m if passes > 1 else 0) <= words:
        return 0.0
    rows = math.floor((words - (e + f)) / (e + f + 2 + (m if passes > 1 else 0)))
    in_rows = (math.ceil(p / rows) - 1) * (e + f) * m * batch if rows >= 1 else math.inf
    apart = _contraction_again(first, words, env) + _contraction_again(pair.second, words, env)
    return min(in_rows, apart + max(2, passes) * batch * p * m) * size


def _contraction_again(c: Contraction, words: float, env: Mapping[str, int]) -> float:
    """Words of both operands read beyond the first time, with the best block of results the cache holds."""
    batch, m, n, k, reuse = (_number(x, env) for x in (c.batch, c.m, c.n, c.k, c.reuse))
    if 0 in (batch, m, n, k):
        return 0.0
    left, right = m * k / reuse, n * k
    if min(left, right) + (k + 1) + 1 <= words:  # one operand stays, the other streams past once
        return 0.0
    side = max(1.0, math.floor(math.sqrt(words + 1) - 1))
    best = math.inf
    for blocks in range(1, min(2 * math.ceil(m / side), 256) + 1):
        rows = math.ceil(m / blocks)
        columns = min(n, math.floor((words - rows) / (rows + 1)))
        if columns >= 1:
            best = min(best, left * (math.ceil(n / columns) - 1) + right * (blocks - 1))
    if best == math.inf:  # tiles of the best shape, without rounding to whole ones
        best = left * (n / side - 1) + right * (m / side - 1)
    return batch * best


def _env(symbols: Mapping[str, int]) -> dict[str, int]:
    return {n if n.startswith("#") else "#" + n: v for n, v in symbols.items()}


def _number(e: IntExpr, env: Mapping[str, int]) -> float:
    return float(evaluate(e, env))
