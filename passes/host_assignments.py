"""What control merely passes on costs nothing: copies, equal values of both arms, states that never change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from dlc.ir.domain import Domain, add_domains
from dlc.ir.dtype import BOOL
from dlc.ir.einsum import Einsum, Scan, TensorType, identity
from dlc.ir.expr import Access, Apply, Expr
from dlc.ir.extent import Var
from dlc.ir.loc import Loc
from dlc.ir.program import For, If, Loop, Program, Region, Stmt, tensor_types
from dlc.passes.pipeline import Pass
from dlc.passes.rename import rename_reads, rename_region
from dlc.passes.rewrite import drop_dead


@dataclass(frozen=True)
class HostAssignments(Pass):
    """Yields that are inputs, constants or copies become assignments of the host program, and decided branches go.

        B[i, j] = A[i, j]                                  ->   readers of B read A
        if C { .. yield (A, X) } else { .. yield (B, X) } -> (R, S)      ->   S is X; R is the address of A or of B
        if C { if C { S } else { T } } else { U }          ->   if C { S } else { U }
        if !C { S } else { T }                             ->   if C { T } else { S }
        loop .. carry (H = H0, K = K0) { .. yield (H1, K) }      ->   K is K0 before, in and after the loop

    The native host program holds an address for each tensor that control chooses, so that an arm which yields what was
    there before, or a constant, runs no kernel and copies nothing. In an arm its condition is known, and so are the
    operands of a conjunction that holds and of a disjunction that does not.

    Source: Chen et al., DyCL, ISSTA 2023 (arXiv 2307.04963), graph optimisation, cases a and b.
    """

    name: ClassVar[str] = "host-assignments"

    def apply(self, program: Program) -> Program:
        body = _Assigning(frozenset(program.results), tensor_types(program)).region(program.body, {})
        return program if body == program.body else drop_dead(program.with_body(body))


@dataclass(slots=True)
class _Assigning:
    """`names`: tensor -> another one with the same value. `truths`: the expressions of scalar booleans."""

    results: frozenset[str]
    types: dict[str, TensorType]
    names: dict[str, str] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    truths: dict[str, Expr] = field(default_factory=dict)

    def region(self, region: Region, known: Mapping[str, bool]) -> Region:
        """`known`: booleans whose value is decided here."""
        body: list[Stmt] = []
        for stmt in region.body:
            body += self.statement(rename_reads(stmt, self.names), known)
        return rename_region(Region(tuple(body), region.yields), self.names)

    def statement(self, stmt: Stmt, known: Mapping[str, bool]) -> list[Stmt]:
        match stmt:
            case Einsum():
                return self.step(stmt)
            case If():
                return self.branch(stmt, known)
            case Loop():
                return self.loop(stmt, known)
            case Scan():
                add_domains(stmt, self.domains)
                return [stmt]
            case For():
                return [replace(stmt, body=self.region(stmt.body, known))]
            case _:
                return [stmt]

    def step(self, step: Einsum) -> list[Stmt]:
        add_domains(step, self.domains)
        source = copied_tensor(step, self.types)
        if source is not None and source not in self.domains and step.out not in self.results:
            self.names[step.out] = source
            return []
        one = all(r.extent.const == 1 for r in step.ranks)
        if one and step.dtypes == (BOOL,) and step.reduce is None and step.where is None and step.write is None:
            self.truths[step.out] = step.expr
        return [step]

    # --- branches ---

    def branch(self, stmt: If, known: Mapping[str, bool]) -> list[Stmt]:
        cond, positive = self.atom(stmt.cond)
        if not positive:
            stmt = replace(stmt, then=stmt.orelse, orelse=stmt.then)
        if cond in known:
            arm = self.region(stmt.then if known[cond] else stmt.orelse, known)
            return [*arm.body, *self.assignments(zip(stmt.outs, arm.yields, strict=True), stmt.loc)]
        then = self.region(stmt.then, {**known, **self.implied(cond, True)})
        orelse = self.region(stmt.orelse, {**known, **self.implied(cond, False)})
        equal = [a == b for a, b in zip(then.yields, orelse.yields, strict=True)]
        passed = [pair for pair, same in zip(zip(stmt.outs, then.yields, strict=True), equal, strict=True) if same]
        chosen = [n for n, same in enumerate(equal) if not same]
        arms = [Region(r.body, tuple(r.yields[n] for n in chosen)) for r in (then, orelse)]
        branch = replace(stmt, cond=cond, then=arms[0], orelse=arms[1], outs=tuple(stmt.outs[n] for n in chosen))
        return [stmt if branch == stmt else branch, *self.assignments(passed, stmt.loc)]

    def assignments(self, pairs: Iterable[tuple[str, str]], loc: Loc) -> list[Stmt]:
        """Readers of the first of each pair read the second; a result keeps its name."""
        copies: list[Stmt] = []
        for out, value in pairs:
            if out in self.results:
                copies.append(replace(identity(out, value, self.types[value]), loc=loc))
            else:
                self.names[out] = value
        return copies

    def atom(self, name: str) -> tuple[str, bool]:
        """The boolean that `name` is, or is the negation of."""
        match self.truths.get(name):
            case Apply("not", (Access(inner, _, None),)) if self.types[inner].elements.const == 1:
                found, positive = self.atom(inner)
                return found, not positive
            case _:
                return name, True

    def implied(self, name: str, value: bool) -> dict[str, bool]:
        """What is known when the boolean `name` is `value`."""
        atom, positive = self.atom(name)
        value = value if positive else not value
        found = {atom: value}
        match self.truths.get(atom):
            case Apply(op, args) if op == ("and" if value else "or"):
                for arg in args:
                    if isinstance(arg, Access) and arg.default is None and self.types[arg.tensor].elements.const == 1:
                        found |= self.implied(arg.tensor, value)
            case _:
                pass
        return found

    # --- loops ---

    def loop(self, stmt: Loop, known: Mapping[str, bool]) -> list[Stmt]:
        first = 0 if stmt.cond is None else 1
        count = len(stmt.carries)
        values = stmt.body.yields[first : first + count]
        moving = [n for n, (pair, v) in enumerate(zip(stmt.carries, values, strict=True)) if v not in pair]
        still = [n for n in range(count) if n not in moving]
        self.names.update(stmt.carries[n] for n in still)
        yields = [*range(first), *(first + n for n in moving), *range(first + count, len(stmt.body.yields))]
        loop = replace(
            stmt,
            carries=tuple(stmt.carries[n] for n in moving),
            body=self.region(Region(stmt.body.body, tuple(stmt.body.yields[n] for n in yields)), known),
            finals=tuple(stmt.finals[n] for n in moving),
        )
        after = self.assignments(((stmt.finals[n], stmt.carries[n][1]) for n in still), stmt.loc)
        found = loop.body.yields[first : first + len(moving)]
        if any(
            v in pair for pair, v in zip(loop.carries, found, strict=True)
        ):  # seen only without the copies in the body
            return [*self.loop(loop, known), *after]
        return [stmt if loop == stmt else loop, *after]


def copied_tensor(step: Einsum, types: Mapping[str, TensorType]) -> str | None:
    """The tensor that `step` copies as it is, element by element and in the same layout."""
    if not step.is_view or step.where is not None:
        return None
    access = step.expr
    assert isinstance(access, Access)
    of = types[access.tensor]
    whole = access.default is None and len(access.index) == len(step.ranks)
    if not whole or of != types[step.out]:
        return None
    for rank, index in zip(step.ranks, access.index, strict=True):
        if not (isinstance(index.atom, Var) and index.atom.name == rank.name) and rank.extent.const != 1:
            return None
    return access.tensor
