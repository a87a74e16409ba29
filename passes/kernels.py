"""Making kernels of steps: canonical names, so that equal layers are one definition, and the launches that run them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dlc.ir.einsum import Carry, Einsum, Rank, Scan, Step, TensorType
from dlc.ir.extent import variables
from dlc.ir.facts import SymbolFact
from dlc.ir.loc import Loc
from dlc.ir.program import Cascade, Kernel, Launch, Param, Symbol, fresh_name, show_cascade
from dlc.ir.rename import rename_einsum


@dataclass
class Kernels:
    """The kernels of a program in the making.

    Attributes:
        types: of every tensor of the program.
        facts: what is known of extent symbols, by name with `#`.
        table: the kernels by name.
    """

    types: Mapping[str, TensorType]
    facts: Mapping[str, SymbolFact]
    table: dict[str, Kernel] = field(default_factory=dict)

    def launch(self, steps: Sequence[Step], ranks: Mapping[str, str], outer: Sequence[str], results: Sequence[str]) -> Launch:
        """A launch of a kernel of `steps`.

        Args:
            ranks: canonical names of the steps' ranks (of scans, too).
            outer: the task ranks, by their names before.
            results: tensors made by the steps that are read outside.
        """
        made = [o for s in steps for o in _made(s)]
        args = tuple(dict.fromkeys(r for s in steps for r in s.reads if r not in made))
        tensors = {n: f"a{i}" for i, n in enumerate(args)} | {n: f"t{i}" for i, n in enumerate(made)}
        renamed_steps = tuple(renamed(s, ranks, tensors) for s in steps)
        params = tuple(Param(tensors[n], self.types[n]) for n in args)
        tasks = tuple(sorted(ranks[n] for n in outer))
        loc = place_of(steps)
        symbols = self._symbols(params, renamed_steps)
        cascade = Cascade("", params, renamed_steps, tuple(tensors[r] for r in results), symbols, loc)
        kernel = add_kernel(self.table, cascade, tasks)
        return Launch(kernel.name, args, tuple(results), loc)

    def _symbols(self, params: Sequence[Param], steps: Sequence[Step]) -> tuple[Symbol, ...]:
        """What the kernel may assume of the symbols it uses, and of those that their bounds mention."""
        used: frozenset[str] = frozenset().union(*(s.symbols for s in steps))
        used |= frozenset().union(*(variables(e) for p in params for e in p.type.shape))
        while True:
            known = [self.facts[n].below for n in used if n in self.facts]
            more = used.union(*(variables(b) for b in known if b is not None))
            if more == used:
                break
            used = more
        facts = {n: self.facts.get(n, SymbolFact()) for n in sorted(used)}
        return tuple(Symbol(n[1:], f.lo, f.hi, f.divisor, f.below) for n, f in facts.items())


def add_kernel(table: dict[str, Kernel], cascade: Cascade, outer: tuple[str, ...]) -> Kernel:
    """The kernel of a cascade without a name, in `table` under the digest of its text: equal ones are one definition."""
    digest = hashlib.sha256((show_cascade(cascade) + repr(outer)).encode()).hexdigest()[:12]
    name = f"k_{digest}"
    kernel = Kernel(replace(cascade, name=name), outer)
    if table.get(name, kernel) != kernel:  # in a dump that was edited
        name = fresh_name(name, table)
        kernel = replace(kernel, cascade=replace(cascade, name=name))
    return table.setdefault(name, kernel)


def place_of(steps: Sequence[Step]) -> Loc:
    """Where a kernel of `steps` comes from: the last place that is known."""
    return next((s.loc for s in reversed(steps) if s.loc), steps[-1].loc)


def _made(step: Step) -> tuple[str, ...]:
    """Tensors that `step` gives names to, those inside a scan first."""
    if isinstance(step, Einsum):
        return step.outs
    return (*(c.name for c in step.carries), *(o for s in step.body for o in _made(s)), *step.outs)


def renamed(step: Step, ranks: Mapping[str, str], tensors: Mapping[str, str]) -> Step:
    """The step with its ranks (all of them in `ranks`) and tensors renamed."""
    if isinstance(step, Einsum):
        return rename_einsum(step, ranks, tensors)

    def name(tensor: str) -> str:
        return tensors.get(tensor, tensor)

    return Scan(
        Rank(ranks[step.rank.name], step.rank.extent),
        tuple(Carry(name(c.name), name(c.init)) for c in step.carries),
        tuple(renamed(s, ranks, tensors) for s in step.body),
        tuple(map(name, step.yields)),
        tuple(map(name, step.finals)),
        tuple((name(outer), name(inner)) for outer, inner in step.stacked),
        step.loc,
    )


__all__ = ["Kernels", "add_kernel", "place_of", "renamed"]
