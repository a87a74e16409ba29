"""What control passes on lies as the contractions around it want it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from dlc.ir.einsum import Einsum, Rank, Scan, Step, TensorType, einsum
from dlc.ir.expr import Access, Cast, Expr, accesses
from dlc.ir.extent import Var, var
from dlc.ir.program import Bind, If, Library, Loop, Program, Region, Stmt, tensor_types, walk_statements
from dlc.ir.ties import Ties
from dlc.passes.contractions import contraction_factors
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import Names, all_einsums, has_branches, has_loops, map_accesses, map_regions, map_steps

Dimension: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class CarriedLayouts(Pass):
    """Turn values of branches and states of loops so that the dimension is last that contractions want innermost.

        if C { A[c, y, x] = sum(k, ..) X[k, y, x] * W[c, k]; yield (A) }         A[y, x, c] = .. ; yield (A)
        else { B[c, y, x] = .. ; yield (B) } -> (R)                         ->   B[y, x, c] = .. ; yield (B)
        O[o, y, x] = sum(c) R[c, y, x] * V[o, c]                                 O[o, y, x] = sum(c) R[y, x, c] * V[o, c]

    What control passes on is memory in the order of its dimensions, and the layouts that `prepare-contractions` chooses end
    there: without this, the last step of an arm stores with strides, and the first reader copies. A contraction of
    constant weights wants the weights' own rank innermost in its result, and the reduced rank innermost in its operand;
    through point-wise steps that goes on to others. All values that may be one by control are turned alike. What is no
    Einsum's result (an input that an arm passes on) is copied there, which has to be rarer than what it is good for.
    """

    name: ClassVar[str] = "carried-layouts"

    def apply(self, program: Program) -> Program:
        if not has_branches(program) and not has_loops(program):
            return program
        program = explicit_domains(program)
        turns = _turns(program)
        return _Turning(program, turns).run() if turns else program


# --- choosing ---


def _turns(program: Program) -> dict[str, tuple[int, ...]]:
    """New order of the dimensions of each tensor that is turned."""
    types, webs = tensor_types(program), Ties[str]()
    dims, wanted = Ties[Dimension](), Counter[Dimension]()
    for pair in _passed(program):
        webs.tie(*pair)
        for d in range(types[pair[0]].rank):
            dims.tie((pair[0], d), (pair[1], d))
    made = {o for s in all_einsums(program) for o in s.outs if _turnable(s)}
    for step in all_einsums(program):
        _tie_pointwise(step, dims)
    weights = {c.name for c in program.consts}
    for step in all_einsums(program):
        wanted.update(dims.root(w) for w in _wanted(step, weights))
    members: dict[str, list[str]] = {}
    for name in webs:
        members.setdefault(webs.root(name), []).append(name)
    chosen = _controlled(program)
    whole = _read_whole(program)
    turns: dict[str, tuple[int, ...]] = {}
    for names in members.values():
        rank = types[names[0]].rank
        votes = [wanted[dims.root((names[0], d))] for d in range(rank)]
        foreign = [n for n in names if n not in chosen and n not in made]
        inner = [n for n in names if n not in foreign]
        if rank < 3 or not inner or not whole.isdisjoint(inner) or any(not types[n].row_major for n in names):
            continue
        best = max(range(rank), key=lambda d: votes[d])
        if votes[best] > max(votes[-1], len(foreign)):
            turns.update(dict.fromkeys(inner, (*(d for d in range(rank) if d != best), best)))
    return turns


def _passed(program: Program) -> Iterator[tuple[str, str]]:
    """(name on one side, name on the other) of every value that control passes on."""
    for stmt in walk_statements(program.body):
        match stmt:
            case If():
                for out, *values in zip(stmt.outs, stmt.then.yields, stmt.orelse.yields, strict=True):
                    yield from ((out, v) for v in values)
            case Loop():
                first = 0 if stmt.cond is None else 1
                for (name, init), value, final in zip(stmt.carries, stmt.body.yields[first:], stmt.finals, strict=False):
                    yield from ((name, other) for other in (init, value, final))
            case _:
                pass


def _controlled(program: Program) -> set[str]:
    """Tensors that no statement writes: values of branches, states of loops."""
    names: set[str] = set()
    for stmt in walk_statements(program.body):
        if isinstance(stmt, If):
            names.update(stmt.outs)
        elif isinstance(stmt, Loop):
            names.update((*stmt.finals, *(n for n, _ in stmt.carries)))
    return names


def _turnable(step: Einsum) -> bool:
    return len(step.outs) == 1 and step.write is None and step.row_major


def _read_whole(program: Program) -> set[str]:
    """Tensors that something other than the passing on itself needs as memory in their own order."""
    names = set(program.results)

    def scan(step: Step) -> None:
        if isinstance(step, Einsum):
            names.update(() if step.write is None else (step.write.onto, step.out))
            return
        names.update((*step.yields, *step.outs, *(c.init for c in step.carries), *(c.name for c in step.carries)))
        names.update(inner for _, inner in step.stacked)
        for inner in step.body:
            names.update(inner.outs)
            scan(inner)

    for stmt in walk_statements(program.body):
        match stmt:
            case Einsum() | Scan():
                scan(stmt)
            case Library() | Bind():
                names.update(stmt.reads)
            case If():
                names.add(stmt.cond)
            case Loop():
                names.update(n for n in (stmt.limit, stmt.cond) if n is not None)
                names.update(stmt.body.yields[len(stmt.body.yields) - len(stmt.collected) :])
            case _:
                pass
    return names


def _tie_pointwise(step: Einsum, dims: Ties[Dimension]) -> None:
    """Dimensions that a point-wise step reads and writes by the same rank want the same place."""
    if step.reduce is not None or not _turnable(step):
        return
    place = {r.name: d for d, r in enumerate(step.ranks)}
    for a in accesses(step.expr):
        for d, i in enumerate(a.index):
            if isinstance(i.atom, Var) and i.atom.name in place:
                dims.tie((step.out, place[i.atom.name]), (a.tensor, d))


def _wanted(step: Einsum, weights: set[str]) -> Iterator[Dimension]:
    """Dimensions that a contraction by constant weights wants innermost."""
    factors = contraction_factors(step)
    if factors is None:
        return
    found = [_inner_access(f) for f in factors]
    for data, other in (found, found[::-1]):
        if data is None or other is None or other.tensor not in weights or data.tensor in weights:
            continue
        columns = [(r.extent.const or 0, d) for d, r in enumerate(step.ranks) if r.name in other.variables - data.variables]
        if columns:
            yield step.out, max(columns)[1]
        shared = {r.name: r.extent.const or 0 for r in step.reduced if r.name in other.variables}
        summed = [(shared[i.atom.name], d) for d, i in enumerate(data.index) if isinstance(i.atom, Var) and i.atom.name in shared]
        if summed:
            yield data.tensor, max(summed)[1]


def _inner_access(e: Expr) -> Access | None:
    inner = e.arg if isinstance(e, Cast) else e
    return inner if isinstance(inner, Access) else None


# --- turning ---


class _Turning:
    def __init__(self, program: Program, turns: dict[str, tuple[int, ...]]) -> None:
        self.program, self.turns = program, turns
        self.types, self.names = tensor_types(program), Names(program)

    def run(self) -> Program:
        return map_regions(map_steps(self.program, self.step), self.region)

    def step(self, step: Einsum) -> Einsum:
        def read(a: Access) -> Access:
            turn = self.turns.get(a.tensor)
            return a if turn is None else Access(a.tensor, tuple(a.index[d] for d in turn), a.default)

        step = map_accesses(step, read)
        turn = self.turns.get(step.outs[0])
        return step if turn is None else replace(step, ranks=tuple(step.ranks[d] for d in turn))

    def region(self, region: Region) -> Region:
        """What is passed on into this region's branches and loops, and out of their regions."""
        body: list[Stmt] = []
        for stmt in region.body:
            match stmt:
                case If():
                    then, orelse = (self.yielding(arm, arm.yields, stmt.outs) for arm in (stmt.then, stmt.orelse))
                    body.append(replace(stmt, then=then, orelse=orelse))
                case Loop():
                    first = 0 if stmt.cond is None else 1
                    states = [name for name, _ in stmt.carries]
                    inits, copies = self.turned([init for _, init in stmt.carries], states)
                    like = (*stmt.body.yields[:first], *states, *stmt.body.yields[first + len(states) :])
                    inner = self.yielding(stmt.body, stmt.body.yields, like)
                    body += [*copies, replace(stmt, carries=tuple(zip(states, inits, strict=True)), body=inner)]
                case _:
                    body.append(stmt)
        same = len(body) == len(region.body) and all(a == b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)

    def yielding(self, region: Region, yields: Sequence[str], like: Sequence[str]) -> Region:
        names, copies = self.turned(yields, like)
        return Region((*region.body, *copies), tuple(names))

    def turned(self, names: Sequence[str], like: Sequence[str]) -> tuple[list[str], list[Einsum]]:
        """The tensors in the order of their counterparts in `like`, and the copies that this takes."""
        found: list[str] = []
        copies: dict[str, Einsum] = {}
        for name, target in zip(names, like, strict=True):
            turn = self.turns.get(target)
            if turn is None or name in self.turns:
                found.append(name)
                continue
            if name not in copies:
                copies[name] = self.copy(name, self.types[name], turn)
            found.append(copies[name].out)
        return found, list(copies.values())

    def copy(self, name: str, of: TensorType, turn: tuple[int, ...]) -> Einsum:
        ranks = tuple(Rank(f"i{d}", e) for d, e in enumerate(of.shape))
        access = Access(name, tuple(var(r.name) for r in ranks))
        return einsum(self.names.fresh(f"{name}_turned"), tuple(ranks[d] for d in turn), access, of.dtype)
