"""A chain of kernels over an image, done band by band of its lines, so that what passes between them stays in a cache.

    V = f(X); M = g(V); O = h(M)      ->      scan t { V' = f(X at band t); M' = g(V'); O' = h(M') } stack (S = O');  O = S[y // L, y % L]

The tensors between the kernels are as large as a band needs, and the stack of a band after the other is the image again.

Source: strip mining of a producer and its consumers, as in Alwani et al., Fused-layer CNN accelerators (MICRO 2016), section III,
here without the pyramid: what a band needs of the first input is there as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dlc.ir.einsum import Einsum, Rank, Scan, einsum
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import int_expr, substitute, var, variables
from dlc.ir.program import Stmt, fresh_name


@dataclass(frozen=True)
class Chain:
    """Einsums of which each reads the one before it, the last of which makes the lines of an image.

    Attributes:
        tile: the rank of tiles of lines, along which the first of them are cut.
        line: the rank of lines of the others; `lines` of them are made of a tile.
        storage: the ranks of the result as they are to lie, outermost first.
        passed: the tensors that one kernel leaves for the next; the others stay in registers.
    """

    steps: tuple[Einsum, ...]
    tile: Rank
    line: Rank
    lines: int
    storage: tuple[str, ...]
    passed: tuple[str, ...]

    @property
    def between(self) -> int:
        """Bytes of what one tile of lines leaves for the next kernel, 0 where it is not known."""
        total = 0
        for step in self.steps:
            size = step.dtype.bytes if step.out in self.passed else 0
            for r in step.ranks:
                size *= 1 if r == self.tile else r.extent.const or 0
            total += size
        return total


def tiles_of_band(chain: Chain, most_bytes: int) -> int:
    """Tiles of lines in a band: the most that leave no more than `most_bytes` and divide the image; 0 where there are none."""
    tiles = chain.tile.extent.const or 0
    if chain.line.extent.const != tiles * chain.lines or not chain.between:
        return 0
    fitting = [n for n in range(1, tiles) if tiles % n == 0 and n * chain.between <= most_bytes]
    return max(fitting, default=0)


def in_bands(chain: Chain, tiles: int, fresh: Callable[[str], str]) -> list[Stmt]:
    """The chain as a scan over bands of `tiles` tiles, and its result as a view of what that stacks."""
    result = chain.steps[-1]
    taken = {n for s in chain.steps for r in s.all_ranks for n in (r.name, *variables(r.extent))}
    band = Rank(fresh_name("band", taken), int_expr((chain.tile.extent.const or 0) // tiles))
    height = tiles * chain.lines
    short = {chain.tile.name: int_expr(tiles), chain.line.name: int_expr(height)}
    env = {name: var(band.name) * size + var(name) for name, size in short.items()}
    inside = {s.out for s in chain.steps}

    def moved(step: Einsum) -> Einsum:
        """The step in a band: what it reads of other tensors is where the band is."""

        def visit(e: Expr) -> Expr | None:
            if not isinstance(e, Access) or e.tensor in inside:
                return None
            return replace(e, index=tuple(substitute(i, env) for i in e.index))

        ranks = tuple(Rank(r.name, short.get(r.name, r.extent)) for r in step.ranks)
        return replace(step, ranks=ranks, exprs=tuple(transform(e, visit) for e in step.exprs))

    *body, last = map(moved, chain.steps)
    by_name = {r.name: r for r in last.ranks}
    stored = replace(last, outs=(fresh(f"{result.out}_band"),), ranks=tuple(by_name[n] for n in chain.storage), order=None)
    stack = fresh(f"{result.out}_bands")
    scan = Scan(band, (), (*body, stored), (), (), ((stack, stored.out),), result.loc)
    line = var(chain.line.name)
    index = (line // height, *(line % height if n == chain.line.name else var(n) for n in chain.storage))
    view = einsum(result.out, result.ranks, Access(stack, index), result.dtype, loc=result.loc)
    places = {r.name: d for d, r in enumerate(result.ranks)}
    order = tuple(places[n] for n in chain.storage)
    return [scan, replace(view, order=None if order == tuple(range(len(order))) else order)]


__all__ = ["Chain", "in_bands", "tiles_of_band"]
