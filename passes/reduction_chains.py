"""Chains of reductions over one rank of shared data, where later operands depend on earlier results.

A chain starts at a reduction over a rank of some data. Steps after it *follow* the rank when they read the same data, or what
is point-wise of it, at the same place. They are

    fold     a reduction over the rank                          GM[p] = max(m) QK[p, m],  SD[p] = sum(m) SN[p, m]
    mixed    point-wise along the rank, of data and folds       SN[p, m] = exp(QK[p, m] - GM[p])
    value    free of the rank, point-wise of folds              MU[p] = S[p] / 768.0
    local    what makes the data, when only the chain reads it  QK[p, m] = sum(e) Q[p, e] * K[m, e]

Passes over the rank are counted by the folds that depend on each other: this is what one traversal has to carry.

Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), section III, for passes and their read-read barriers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import IntExpr, Value, substitute, var, variables
from dlc.ir.program import Bind, Library, Stmt
from dlc.passes.refusals import Reason, Refused

_HOLE = "@rank"  # a name no rank can have


class Kind(Enum):
    LOCAL = "local"
    MIXED = "mixed"
    FOLD = "fold"
    VALUE = "value"


@dataclass(frozen=True)
class Member:
    """A step of a chain; `rank` is its own name for the chain's rank, "" for a value."""

    step: Einsum
    kind: Kind
    rank: str


@dataclass
class Chain:
    """A chain as found in a list of statements; members by what they write, in the order of the statements.

    Attributes:
        rank: the first fold's name of the rank.
        extent: of the rank.
        members: every step that belongs to it.
        dims: the dimension that is the rank, of each tensor that a mixed or local member writes.
        anchors: (tensor, dimension) -> index there, with a hole for the rank, of the data that the chain shares.
        tainted: tensors that depend on the chain in another way.
    """

    rank: str
    extent: IntExpr
    members: dict[str, Member] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    anchors: dict[tuple[str, int], IntExpr] = field(default_factory=dict)
    tainted: dict[str, Einsum | None] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[Member]:
        return [m for m in self.members.values() if m.kind is kind]

    @property
    def folds(self) -> list[Member]:
        """Each fold once (a tuple reduction writes several tensors)."""
        return list({id(m): m for m in self.of(Kind.FOLD)}.values())

    def is_running(self, tensor: str) -> bool:
        """Whether the tensor is known only when the traversal ends: folds and what is made of them."""
        member = self.members.get(tensor)
        return member is not None and member.kind is not Kind.LOCAL

    def depends(self, step: Einsum) -> bool:
        return any(self.is_running(t) for t in step.reads)

    def inlined(self, e: Expr, kind: Kind) -> Expr:
        """`e` with the members of this kind replaced by their expressions, down to the bottom."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Access):
                return None
            member = self.members.get(node.tensor)
            if member is None or member.kind is not kind:
                return None
            if node.default is not None:
                raise Refused(Reason.INSEPARABLE, f"{node} may lie outside")
            env = {r.name: i for r, i in zip(member.step.ranks, node.index, strict=True)}
            return self.inlined(member.step.expr.substitute(env), kind)

        return transform(e, visit)

    def operand(self, member: Member) -> Expr:
        """A fold's operand in terms of data, folds and values."""
        return self.inlined(member.step.expr, Kind.MIXED)


def find_chains(body: Sequence[Stmt], seen: dict[tuple[int, str], Einsum]) -> Iterator[Chain]:
    """Chains in which some fold depends on another, by the place of their first fold.

    Args:
        seen: (identity, rank) of reductions that begin no chain; those found are added, so that each is looked at once.
    """
    for place, stmt in enumerate(body):
        if not isinstance(stmt, Einsum) or stmt.reduce is None or stmt.write is not None:
            continue
        for rank in stmt.reduced:
            if (id(stmt), rank.name) in seen:
                continue
            chain = _grown(body, place, stmt, rank.name)
            _keep_connected(chain, stmt)
            if any(chain.depends(m.step) for m in chain.folds):
                yield chain
            else:
                seen[id(stmt), rank.name] = stmt


def _grown(body: Sequence[Stmt], place: int, seed: Einsum, rank: str) -> Chain:
    chain = Chain(rank, seed.extents[rank])
    _anchor(chain, seed, rank)
    _join(chain, Member(seed, Kind.FOLD, rank))
    near = {*seed.outs, *(t for t, _ in chain.anchors)}
    for stmt in body[place + 1 :]:
        if isinstance(stmt, Einsum):
            if near.isdisjoint(stmt.reads):
                continue
            if not chain.tainted.keys().isdisjoint(stmt.reads):  # as is most of what comes after a chain
                chain.tainted.update(dict.fromkeys(stmt.outs, stmt))
                near.update(stmt.outs)
            else:
                _follow(chain, stmt)
                near |= {t for t in stmt.outs if t in chain.members or t in chain.tainted}
                near |= {t for t, _ in chain.anchors}
            continue
        dependent = any(chain.is_running(t) or t in chain.tainted for t in stmt.reads)
        if dependent and isinstance(stmt, (Bind, Library)):
            break  # extents that follow may depend on it
        if dependent:
            chain.tainted.update(dict.fromkeys(stmt.outs))
    return chain


def _keep_connected(chain: Chain, seed: Einsum) -> None:
    """Drop folds of the same data that have nothing to do with the first one: they are chains of their own, or none."""
    kept = set(seed.outs)
    size_of_seed = _width(seed)
    while True:
        size = len(kept)
        for name, m in chain.members.items():
            if m.kind is Kind.VALUE and _width(m.step) > size_of_seed:
                continue  # a sum of two results, say, is no reason to compute them together
            near = {name, *m.step.outs} | {t for t in m.step.reads if t in chain.members}
            if not kept.isdisjoint(near):
                kept |= near
        if len(kept) == size:
            break
    for name in set(chain.members) - kept:
        del chain.members[name]
        chain.dims.pop(name, None)


def _width(step: Einsum) -> int:
    return sum(r.extent.const != 1 for r in step.ranks)


def _join(chain: Chain, member: Member) -> None:
    chain.members.update(dict.fromkeys(member.step.outs, member))


def _anchor(chain: Chain, step: Einsum, rank: str) -> None:
    """What `step` reads along the rank is data that the chain shares."""
    for a in step.accesses():
        for d, i in enumerate(a.index):
            if a.default is None and {n for n in variables(i) if not n.startswith("#")} == {rank}:
                chain.anchors.setdefault((a.tensor, d), substitute(i, {rank: var(_HOLE)}))


def _covers(chain: Chain, step: Einsum) -> bool:
    """Whether some of the shared data has every free rank of the step: it summarises that data and no more."""
    free = {r.name for r in step.ranks if r.extent.const != 1}
    shared = {t for t, _ in chain.anchors}
    return any(a.tensor in shared and free <= a.variables for a in step.accesses())


def _follow(chain: Chain, step: Einsum) -> None:
    """Add the step, which reads nothing tainted, to the chain if it follows the rank or depends on what does."""
    dependent = chain.depends(step)
    rank = _aligned(chain, step)
    reduced = rank is not None and rank in {r.name for r in step.reduced}
    if not dependent:
        if reduced and step.write is None and _covers(chain, step):
            _join(chain, Member(step, Kind.FOLD, rank or ""))
        return
    if step.write is None and rank is not None and reduced:
        _join(chain, Member(step, Kind.FOLD, rank))
    elif step.write is None and step.reduce is None and rank is not None:
        _join(chain, Member(step, Kind.MIXED, rank))
        chain.dims[step.out] = [r.name for r in step.ranks].index(rank)
    elif step.write is None and step.reduce is None and not any(t in chain.dims for t in step.reads):
        _join(chain, Member(step, Kind.VALUE, ""))
    else:
        chain.tainted.update(dict.fromkeys(step.outs, step))


def _aligned(chain: Chain, step: Einsum) -> str | None:
    """The step's rank that runs along the chain's; None when there is none, or several."""
    extents = step.extents
    found: set[str] = set()
    for a in step.accesses():
        if a.tensor in chain.dims:
            name = str(a.index[chain.dims[a.tensor]])
            if a.default is not None or extents.get(name) != chain.extent:
                return None
            found.add(name)
        for (tensor, d), pattern in chain.anchors.items():
            if tensor != a.tensor or a.default is not None:
                continue
            for name in variables(a.index[d]):
                if extents.get(name) == chain.extent and substitute(a.index[d], {name: var(_HOLE)}) == pattern:
                    found.add(name)
    return found.pop() if len(found) == 1 else None


def add_locals(chain: Chain, body: Sequence[Stmt], outside: frozenset[str], data: str | None = None) -> None:
    """Add what makes the chain's data: steps that only the chain reads, at the place of the rank, over ranks of its folds.

    Args:
        outside: tensors that something other than a direct Einsum of `body` reads.
        data: an operand of a fold that is data of the chain although it lacks free ranks of the fold.
    """
    made = {s.out: s for s in body if isinstance(s, Einsum) and s.write is None and len(s.outs) == 1}
    readers: dict[str, list[Einsum]] = {}
    for s in body:
        if isinstance(s, Einsum):
            for t in s.reads:
                readers.setdefault(t, []).append(s)
    work = [m for m in chain.members.values() if m.kind is not Kind.VALUE]
    while work:
        member = work.pop()
        for a in list(member.step.accesses()):
            producer = made.get(a.tensor)
            if producer is None or a.tensor in chain.members or a.tensor in outside or not producer.row_major:
                continue
            dim = _dimension(chain, readers[a.tensor], a.tensor)
            if dim is None or not _is_data(a, dim, member, data) or chain.depends(producer):
                continue
            local = Member(producer, Kind.LOCAL, producer.ranks[dim].name)
            _join(chain, local)
            chain.dims[a.tensor] = dim
            work.append(local)


def inline_picks(chain: Chain, body: Sequence[Stmt]) -> list[Stmt]:
    """`body` in which steps that read a mixed tensor at one place of the rank, not along it, compute that element.

        L[n] = -LS[n, T[n]]     ->     L[n] = -(X[n, T[n]] - GM[n] - log(SD[n]))
    """
    inside = {id(m.step) for m in chain.members.values()}

    def picked(step: Einsum) -> Einsum:
        if chain.dims.keys().isdisjoint(step.reads):
            return step
        reads = [a for a in step.accesses() if a.tensor in chain.dims and chain.is_running(a.tensor)]
        if not reads or step.write is not None or any(_traverses(chain, a) for a in reads):
            return step
        return replace(step, exprs=tuple(chain.inlined(e, Kind.MIXED) for e in step.exprs))

    return [picked(s) if isinstance(s, Einsum) and id(s) not in inside else s for s in body]


def _traverses(chain: Chain, a: Access) -> bool:
    """Whether the access may run along the chain's rank."""
    place = a.index[chain.dims[a.tensor]]
    return place.const is None and not isinstance(place.atom, Value)


def _dimension(chain: Chain, readers: Sequence[Einsum], tensor: str) -> int | None:
    """The dimension of `tensor` at which every reader, all of them members, has the rank; None if some has not."""
    dims: set[int | None] = set()
    for s in readers:
        member = next((m for m in chain.members.values() if m.step is s), None)
        for a in s.accesses():
            if a.tensor != tensor:
                continue
            if member is None or a.default is not None:
                return None
            at = [d for d, i in enumerate(a.index) if member.rank in variables(i)]
            dims.add(at[0] if len(at) == 1 and a.index[at[0]] == var(member.rank) else None)
    return dims.pop() if len(dims) == 1 else None


def _is_data(a: Access, dim: int, member: Member, data: str | None) -> bool:
    """Whether a member reads one element at each of its points: the index is the rank, free ranks, and constants.

    A fold's other operands lack some free rank of it, as V does in `SN[p, m] * V[m, f]`.
    """
    free = {r.name for r in member.step.ranks}
    if not all(i.const is not None or str(i) in free for d, i in enumerate(a.index) if d != dim):
        return False
    whole = {r.name for r in member.step.ranks if r.extent.const != 1} <= a.variables
    return member.kind is not Kind.FOLD or whole or a.tensor == data


def ordered(chain: Chain, body: Sequence[Stmt]) -> list[Member]:
    """Members in the order of the statements, each once."""
    by_step = {id(m.step): m for m in chain.members.values()}
    return [by_step[id(s)] for s in body if id(s) in by_step]
