"""Which ranks of a cascade are one rank under several names: a tensor's dimension, and all that enumerate it in its readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.extent import IntExpr, Var, variables
from dlc.ir.program import Cascade, cascade_types
from dlc.ir.ties import Ties

Key = tuple[str, str, int]
"""A dimension ("tensor", name, number) or a rank of a step ("rank:" + the step's first result, name, 0)."""


@dataclass(frozen=True, slots=True)
class RankClass:
    """Dimensions and ranks that reads and writes tie together.

    Attributes:
        name: how people call it: the symbol or rank that names it first.
        names: every rank name and extent symbol that stands for it, or for a part of it.
        dims: (tensor, dimension) pairs.
    """

    name: str
    names: frozenset[str]
    dims: frozenset[tuple[str, int]]

    def __str__(self) -> str:
        return self.name


def rank_classes(cascade: Cascade) -> tuple[RankClass, ...]:
    """All classes, in order of first occurrence in the text."""
    ties = _Ties()
    types = cascade_types(cascade)
    for p in cascade.params:
        for n, extent in enumerate(p.type.shape):
            ties.add(("tensor", p.name, n), _symbol_name(extent))
    _tie_steps(cascade.steps, ties, {}, {t: of.rank for t, of in types.items()})
    found = []
    for keys, names in ties.groups():
        dims = frozenset((t, n) for kind, t, n in keys if kind == "tensor")
        found.append(RankClass(next(iter(names), "?"), frozenset(names), dims))
    return tuple(found)


def name_of(extent: IntExpr, position: int) -> str:
    """A dimension's name where no rank gives one: its symbol, or its number."""
    return _symbol_name(extent) or f"dim{position}"


def _symbol_name(extent: IntExpr) -> str:
    atom = extent.atom
    return atom.name.lstrip("#") if isinstance(atom, Var) else ""


class _Ties(Ties[Key]):
    """Ties of dimensions and ranks, with their names in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[Key, dict[str, None]] = {}

    def add(self, key: Key, name: str = "") -> Key:
        self.root(key)
        if name:
            self._names.setdefault(key, {})[name] = None
        return key

    def groups(self) -> Iterator[tuple[list[Key], dict[str, None]]]:
        found: dict[Key, tuple[list[Key], dict[str, None]]] = {}
        for key in self:
            keys, names = found.setdefault(self.root(key), ([], {}))
            keys.append(key)
            names.update(self._names.get(key, {}))
        yield from found.values()


def _tie_steps(steps: Iterable[Step], ties: _Ties, around: Mapping[str, Key], sizes: Mapping[str, int]) -> None:
    for step in steps:
        if isinstance(step, Einsum):
            _tie_einsum(step, ties, around)
        else:
            _tie_scan(step, ties, around, sizes)


def _tie_einsum(step: Einsum, ties: _Ties, around: Mapping[str, Key]) -> None:
    own = {r.name: ties.add((f"rank:{step.out}", r.name, 0), r.name) for r in step.all_ranks}
    scope = {**around, **own}
    if step.write is None:
        for out in step.outs:
            for n, r in enumerate(step.ranks):
                ties.tie(ties.add(("tensor", out, n)), own[r.name])
    for a in step.accesses():
        for n, index in enumerate(a.index):
            for name in sorted(variables(index) & scope.keys()):
                ties.tie(ties.add(("tensor", a.tensor, n)), scope[name])


def _tie_scan(scan: Scan, ties: _Ties, around: Mapping[str, Key], sizes: Mapping[str, int]) -> None:
    key = ties.add((f"rank:{(*scan.outs, *scan.yields)[0]}", scan.rank.name, 1), scan.rank.name)
    for final, carry, y in zip(scan.finals, scan.carries, scan.yields, strict=True):
        for n in range(sizes[carry.init]):
            for other in (carry.name, y, final):
                ties.tie(("tensor", carry.init, n), ("tensor", other, n))
    _tie_steps(scan.body, ties, {**around, scan.rank.name: key}, sizes)
    for outer, inner in scan.stacked:
        ties.tie(("tensor", outer, 0), key)
        for n in range(sizes[inner]):
            ties.tie(("tensor", outer, n + 1), ("tensor", inner, n))
