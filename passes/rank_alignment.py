"""Which ranks of the steps of a kernel are the same one, and which of them its tasks can be apart in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlc.ir.einsum import Einsum, Rank, Step, flat
from dlc.ir.extent import IntExpr, Var
from dlc.ir.rename import rename_einsum
from dlc.ir.ties import Ties


class Alignment:
    """Which ranks of the steps of a kernel are the same, by the dimensions through which they read each other.

    Attributes:
        broken: dimensions (tensor, position) that are read at something else than one rank.
        tasks: classes of ranks that every step has as one of its free ranks.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.einsums = list(flat(steps))
        self.ties: Ties[object] = Ties()
        self.broken: set[tuple[str, int]] = set()
        self._dims(steps)
        for n, step in enumerate(self.einsums):
            self._reads(n, step)
        self.tasks = self._tasks()

    def _dims(self, steps: Sequence[Step]) -> None:
        """Dimensions of what is made, tied to the ranks of the step that makes it, and of states to each other."""
        numbers = {id(s): n for n, s in enumerate(self.einsums)}
        self.made: set[str] = set()

        def visit(step: Step) -> None:
            if isinstance(step, Einsum):
                for out in step.outs:
                    self.made.add(out)
                    for k, r in enumerate(step.ranks):
                        self.ties.tie(("dim", out, k), (numbers[id(step)], r.name))
                return
            for inner in step.body:
                visit(inner)
            rank_of = {o: len(s.ranks) for s in flat(step.body) for o in s.outs}
            for carry, after, final in zip(step.carries, step.yields, step.finals, strict=True):
                self.made |= {carry.name, final}
                for k in range(rank_of.get(after, 0)):
                    for name in (carry.name, carry.init, final):
                        self.ties.tie(("dim", name, k), ("dim", after, k))

        for step in steps:
            visit(step)

    def _reads(self, number: int, step: Einsum) -> None:
        ranks = {r.name: r.extent for r in step.all_ranks}
        for a in step.accesses():
            if a.tensor not in self.made:
                continue
            for k, i in enumerate(a.index):
                if isinstance(i.atom, Var) and i.atom.name in ranks:
                    self.ties.tie(("dim", a.tensor, k), (number, i.atom.name))
                elif i.const is None or i.const != 0:
                    self.broken.add((a.tensor, k))

    def _tasks(self) -> dict[object, IntExpr]:
        reduced = {self.ties.root((n, r.name)) for n, s in enumerate(self.einsums) for r in s.reduced}
        broken = {self.ties.root(("dim", t, k)) for t, k in self.broken}
        found: dict[object, IntExpr] = {}
        for r in self.einsums[-1].ranks:
            root = self.ties.root((len(self.einsums) - 1, r.name))
            if root in reduced or root in broken or r.extent.const == 1:
                continue
            counts = [sum(self.ties.root((n, x.name)) == root for x in s.ranks) for n, s in enumerate(self.einsums)]
            same = all(
                x.extent == r.extent
                for n, s in enumerate(self.einsums)
                for x in s.ranks
                if self.ties.root((n, x.name)) == root
            )
            if same and all(c == 1 for c in counts):
                found[root] = r.extent
        return found

    def renamed(self) -> tuple[list[Step], tuple[str, ...]]:
        """The steps with one name per class of ranks, and the names of the task ranks."""
        names: dict[object, str] = {root: f"o{n}" for n, root in enumerate(self.tasks)}
        outer = tuple(names.values())
        count = 0
        numbers = {id(s): n for n, s in enumerate(self.einsums)}

        def einsum(step: Einsum, outside: Mapping[str, str]) -> Einsum:
            nonlocal count
            n = numbers[id(step)]
            own: dict[str, str] = {}
            for r in step.all_ranks:
                root = self.ties.root((n, r.name))
                name = names.get(root)
                if name is None or name in own.values() or (name in used and used[name] != r.extent):
                    name = f"r{count}"
                    count += 1
                    names.setdefault(root, name)
                own[r.name] = name
                used[name] = r.extent
            return rename_einsum(step, {**outside, **own}, {})

        def visit(step: Step, outside: Mapping[str, str]) -> Step:
            if isinstance(step, Einsum):
                return einsum(step, outside)
            inner = {**outside, step.rank.name: f"s{len(outside)}"}
            body = tuple(visit(s, inner) for s in step.body)
            return replace(step, rank=Rank(inner[step.rank.name], step.rank.extent), body=body)

        used: dict[str, IntExpr] = dict(zip(outer, self.tasks.values(), strict=True))
        return [visit(s, {}) for s in self.steps], outer


__all__ = ["Alignment"]
