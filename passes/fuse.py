"""Partition Einsums into kernels: what shares ranks runs together, and what passes between stays in registers or L1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dlc.ir.bit_sums import packed_sum
from dlc.ir.blocked import block_of, blocked_ranks, told_apart, unrolls
from dlc.ir.einsum import Einsum, Rank, Scan, Step, TensorType
from dlc.ir.extent import IntExpr, Var, substitute, sym, variables
from dlc.ir.forms import form
from dlc.ir.products import bordered_access, plain_access
from dlc.ir.program import (
    For,
    If,
    Launch,
    Loop,
    Program,
    Region,
    Stmt,
    Symbol,
    fresh_name,
    tensor_types,
)
from dlc.ir.rename import rename_einsum
from dlc.passes.contractions import contraction_factors
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.kernels import Kernels, place_of
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import drop_dead
from dlc.passes.runs import longer_runs
from dlc.passes.windows import is_window, moving_ranks


@dataclass(frozen=True)
class Fuse(Pass):
    """Replace runs of Einsums by launches of kernels, and scans by loops of launches.

    A step joins the kernel that makes one of its operands when it can be computed inside the same tasks:

    - a contraction takes point-wise steps over the same points (its epilogue, in registers), one with packed codes before these
      the sum over its groups;
    - steps over the same points share one nest;
    - steps that read each other at a few points (`X[.., 0], X[.., 1]`, `X[y // 4, y % 4]`) run block by block, the points
      of a block unrolled (`dlc.ir.blocked`);
    - otherwise the ranks that all accesses between the steps keep become the tasks, and the others (rows) run inside
      them, their intermediate results in the core's own cache. This is done only where the rows are contiguous, fit in
      `row_bytes`, and enough tasks are left.

    A step that is the only reader of another one joins it past branches, loops and library operations that it does not
    depend on. Equal kernels are one definition, whatever tensors they run on.
    """

    name: ClassVar[str] = "fuse"
    row_bytes: int = 262144
    least_tasks: int = 8
    max_steps: int = 24

    def apply(self, program: Program) -> Program:
        return _Fusion(explicit_domains(program), self).run()


@dataclass
class _Group:
    """A kernel in the making.

    Attributes:
        tiled: whether its first step computes several points at a time (a contraction, a window), so that only what is
            point-wise over the same points may follow.
        outer: the group's task ranks; ranks of one index are never among them.
        dims: for each tensor made here, the group's rank name of every dimension.
    """

    number: int
    tiled: bool
    alone: bool
    steps: list[Einsum] = field(default_factory=list)
    outer: dict[str, IntExpr] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    depends: set[int] = field(default_factory=set)

    @property
    def has_inner(self) -> bool:
        return any(r.name not in self.outer for s in self.steps for r in _moving(s))


@dataclass(frozen=True, slots=True)
class _Part:
    """A kernel of a run.

    Attributes:
        steps: which of the run's steps it does.
        args, results: numbers of tensors, in the order in which the run mentions them.
    """

    kernel: str
    steps: tuple[int, ...]
    args: tuple[int, ...]
    results: tuple[int, ...]

    def launch(self, run: Sequence[Einsum], names: Sequence[str]) -> Launch:
        """Its launch for a run of these steps over these tensors."""
        args, results = (tuple(names[n] for n in given) for given in (self.args, self.results))
        return Launch(self.kernel, args, results, place_of([run[n] for n in self.steps]))


class _Fusion:
    def __init__(self, program: Program, options: Fuse) -> None:
        self.program, self.options = program, options
        self.types = tensor_types(program)
        self.facts = dict(program.facts)
        shapes = (e for t in self.types.values() for e in t.shape)
        self.symbols = {n.removeprefix("#") for n in self.facts.keys() | {v for e in shapes for v in variables(e)}}
        self.parted: dict[Any, list[_Part]] = {}
        self.kernels = Kernels(self.types, self.facts, program.kernel_table)  # a program may have some already

    def run(self) -> Program:
        body = self._region(self.program.body, set())
        return drop_dead(replace(self.program, body=body, kernels=tuple(self.kernels.table.values())))

    def _region(self, region: Region, needed: set[str]) -> Region:
        """`needed`: tensors that statements outside the region read."""
        body: list[Stmt] = []
        run: list[Einsum] = []
        statements = longer_runs(region.body, (*region.yields, *needed))
        after = _reads_after(statements, set(region.yields) | needed)

        def flush(position: int) -> None:
            if run:
                body.extend(self._run(list(run), after[position]))
                run.clear()

        for n, stmt in enumerate(statements):
            if isinstance(stmt, Einsum):
                run.append(stmt)
                continue
            flush(n)
            body.append(self._statement(stmt))
        flush(len(statements))
        return Region(tuple(body), region.yields)

    def _statement(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Scan():
                return self._scan(stmt)
            case If():
                return replace(stmt, then=self._region(stmt.then, set()), orelse=self._region(stmt.orelse, set()))
            case Loop() | For():
                return replace(stmt, body=self._region(stmt.body, set()))
            case _:
                return stmt

    def _scan(self, scan: Scan) -> For:
        """The step loop: the rank becomes a symbol inside the body, of a name that no extent has."""
        symbol = Symbol(fresh_name(scan.rank.name, self.symbols), 0, None, below=scan.rank.extent)
        self.symbols.add(symbol.name)
        env = {scan.rank.name: sym(symbol.name)}
        body = [_substitute_step(s, env) for s in scan.body]
        needed = {inner for _, inner in scan.stacked}
        self.facts["#" + symbol.name] = symbol.fact
        region = self._region(Region(tuple(body), scan.yields), needed)
        carries = tuple((c.name, c.init) for c in scan.carries)
        return For(symbol, scan.rank.extent, carries, region, scan.finals, scan.stacked, scan.loc)

    # --- one straight run ---

    def _run(self, steps: list[Einsum], needed: set[str]) -> list[Launch]:
        """The launches that do what a run of steps does. Equal runs, as of a network's equal blocks, are parted once."""
        forms = [form(s) for s in steps]
        numbers: dict[str, int] = {}
        for f in forms:
            for name in f.tensors:
                numbers.setdefault(name, len(numbers))
        key = (
            tuple((f.step, tuple(numbers[n] for n in f.tensors)) for f in forms),
            tuple(self.types[n] for n in numbers),
            tuple(o in needed for s in steps for o in s.outs),
        )
        if key not in self.parted:
            self.parted[key] = self._parted(steps, needed, numbers)
        names = list(numbers)
        return [part.launch(steps, names) for part in self.parted[key]]

    def _parted(self, steps: list[Einsum], needed: set[str], numbers: Mapping[str, int]) -> list[_Part]:
        groups: list[_Group] = []
        home: dict[str, _Group] = {}
        for step in steps:
            group = self._place(step, groups, home)
            for out in step.outs:
                home[out] = group
        readers: dict[str, set[int]] = {}
        for group in groups:
            for step in group.steps:
                for name in step.reads:
                    readers.setdefault(name, set()).add(group.number)
        places = {s.out: n for n, s in enumerate(steps)}
        parts = []
        for group in _in_order(groups):
            results = tuple(
                o for s in group.steps for o in s.outs if o in needed or readers.get(o, set()) - {group.number}
            )
            if not results:
                continue
            launch = self._launch(group, results)
            tensors = (tuple(numbers[n] for n in given) for given in (launch.args, launch.outs))
            parts.append(_Part(launch.kernel, tuple(places[s.out] for s in group.steps), *tensors))
        return parts

    def _place(self, step: Einsum, groups: list[_Group], home: dict[str, _Group]) -> _Group:
        sources = {home[r].number for r in step.reads if r in home}
        closure = set(sources)
        for n in sources:
            closure |= groups[n].depends
        for number in sorted(sources, reverse=True):
            group = groups[number]
            others = sources - {number}
            if any(number in groups[h].depends for h in others):
                continue  # joining would make a cycle
            if self._join(group, step):
                group.depends |= closure - {number}
                for g in groups:
                    if number in g.depends:
                        g.depends |= group.depends
                return group
        tiled = self._tiles(step) or is_window(step)
        group = _Group(len(groups), tiled, step.write is not None, depends=closure)
        renamed = _rename_ranks(step, {r.name: f"x{n}" for n, r in enumerate(step.ranks)}, f"_{len(groups)}_0")
        group.steps.append(renamed)
        group.outer = {r.name: r.extent for r in _moving(renamed)}
        short = told_apart(renamed)
        if short and unrolls([renamed], group.outer.keys() - short):
            group.outer = {n: e for n, e in group.outer.items() if n not in short}
        for out in step.outs:
            group.dims[out] = tuple(r.name for r in renamed.ranks)
        groups.append(group)
        return group

    def _join(self, group: _Group, step: Einsum) -> bool:
        """Whether `step` can run inside the group; adds it if so."""
        if self._join_groups(group, step):
            return True
        if group.alone or step.write is not None or self._tiles(step) or len(group.steps) >= self.options.max_steps:
            return False
        if group.tiled and (step.reduce is not None or len(step.outs) > 1):
            return False
        aligned = self._align(group, step)
        if aligned is None:
            return False
        outer, names = aligned
        if not group.tiled and self._join_block(group, step, outer, names):
            return True
        if not outer.keys() <= set(names.values()) or _follows(group, step):
            return False  # only a block follows a task without having its rank
        whole = set(outer) == set(group.outer)
        extra = [r for r in _moving(step) if names.get(r.name) not in outer]
        if group.tiled and (not whole or extra):
            return False
        rows = not whole or bool(extra) or (group.has_inner and not group.tiled)
        if rows and not self._rows_pay(group, step, outer, names):
            return False
        self._take(group, _rename_ranks(step, names, _suffix(group)), outer)
        return True

    def _tiles(self, step: Einsum) -> bool:
        return is_contraction(step, self.types) or packed_sum(step, self.types) is not None

    def _join_groups(self, group: _Group, step: Einsum) -> bool:
        """Join as the sum over the groups of a sum with codes, which stays in registers."""
        if len(group.steps) != 1 or step.reduce is None or step.reduce.op != "sum" or step.where is not None:
            return False
        (first,) = group.steps
        if packed_sum(first, self.types) is None:
            return False
        reads = {a for a in step.accesses() if a.tensor == first.out}
        pairs = [(i, r) for a in reads for i, r in zip(a.index, first.ranks, strict=True) if r.extent.const != 1]
        if len(reads) != 1 or any(i.atom is None for i, _ in pairs):
            return False
        names = {str(i): r.name for i, r in pairs}
        if {r.name for r in step.all_ranks if r.extent.const != 1} != names.keys():
            return False
        folded = {names[r.name] for r in step.reduced if r.name in names}
        self._take(group, _rename_ranks(step, names, _suffix(group)), {n: e for n, e in group.outer.items() if n not in folded})
        return True

    def _join_block(
        self, group: _Group, step: Einsum, outer: dict[str, IntExpr], names: dict[str, str]
    ) -> bool:
        """Join as a kernel that works block by block, when that is what the two make together."""
        renamed = _rename_ranks(step, names, _suffix(group))
        short = told_apart(renamed)
        tasks = {n: e for n, e in outer.items() if n not in short}
        if not tasks or not unrolls([*group.steps, renamed], tasks):
            return False
        self._take(group, renamed, tasks)
        return True

    def _take(self, group: _Group, renamed: Einsum, outer: dict[str, IntExpr]) -> None:
        group.steps.append(renamed)
        group.outer = outer
        for out in renamed.outs:
            group.dims[out] = tuple(r.name for r in renamed.ranks)

    def _align(self, group: _Group, step: Einsum) -> tuple[dict[str, IntExpr], dict[str, str]] | None:
        """The task ranks that survive, and the group's names for the step's free ranks."""
        extents = {r.name: r.extent for r in step.ranks}
        kept = dict(group.outer)
        names: dict[str, str] = {}
        inner_names: dict[str, str] = {}
        all_extents = {r.name: r.extent for s in group.steps for r in s.ranks}
        blocks = blocked_ranks(group.steps, group.outer)
        for a in step.accesses():
            dims = group.dims.get(a.tensor)
            if dims is None:
                continue
            if a.default is not None:
                return None
            seen: set[str] = set()
            for c, i in zip(dims, a.index, strict=True):
                own = i.atom.name if isinstance(i.atom, Var) else None
                if c not in group.outer:
                    if c in blocks and own in extents:
                        seen.add(blocks[c].outer)
                    if own in extents and extents[own] == all_extents[c] and own not in inner_names:
                        if c not in inner_names.values():
                            inner_names[own] = c
                    continue
                fits = own in extents and extents[own] == group.outer[c] and names.get(own, c) == c
                if block_of(i, c, group.outer[c], extents) is not None:
                    seen.add(c)  # `unrolls` looks at the rest
                    continue
                taken = any(o != own and n == c for o, n in names.items())
                if own is None or not fits or taken:
                    kept.pop(c, None)
                    continue
                names[own] = c
                seen.add(c)
            for c in list(kept):
                if c not in seen:
                    kept.pop(c)
        names = {own: c for own, c in names.items() if c in kept}
        if group.outer and not kept:
            return None
        used = set(names.values())
        names |= {own: c for own, c in inner_names.items() if own not in names and c not in used}
        return kept, names

    def _rows_pay(self, group: _Group, step: Einsum, outer: dict[str, IntExpr], names: dict[str, str]) -> bool:
        if group.tiled:
            return False
        tasks = 1
        for e in outer.values():
            tasks *= e.const if e.const is not None else 64
        bytes_ = unknown = 0
        steps = [*group.steps, _rename_ranks(step, names, "_probe")]
        for s in steps:
            inner = [r for r in _moving(s) if r.name not in outer]
            if not inner:
                continue
            order = s.order or tuple(range(len(s.ranks)))
            if [s.ranks[d] for d in order if s.ranks[d].extent.const != 1][-1].name in outer:
                return False  # the rows are not contiguous
            size = s.dtype.bytes
            for r in inner:
                size *= r.extent.const if r.extent.const is not None else 64
            unknown = max(unknown, sum(r.extent.const is None for r in inner))
            bytes_ += size
        if any(not _rows_contiguous(s, outer, self.types) for s in steps):
            return False
        small = tasks * bytes_ <= 16384 and unknown < 2  # a row of unknown length may be small, a plane need not
        return (tasks >= self.options.least_tasks or small) and bytes_ <= self.options.row_bytes

    # --- kernels ---

    def _launch(self, group: _Group, results: tuple[str, ...]) -> Launch:
        return self.kernels.launch(group.steps, _canonical_ranks(group), tuple(group.outer), results)


def _moving(step: Einsum) -> list[Rank]:
    """Free ranks of more than one index."""
    return [r for r in step.ranks if r.extent.const != 1]


def _rows_contiguous(step: Einsum, outer: dict[str, IntExpr], types: dict[str, TensorType]) -> bool:
    """Whether what a step with inner or reduced ranks reads from memory has one of them innermost."""
    inner = {r.name for r in step.all_ranks} - set(outer)
    if not inner:
        return True
    wide = [a for a in step.accesses() if a.tensor in types and len(a.index) > 1 and a.variables & inner]
    for a in wide:
        type_ = types[a.tensor]
        order = type_.order or tuple(range(type_.rank))
        last = next((d for d in reversed(order) if type_.shape[d].const != 1), order[-1])
        if a.index[last].const is None and not variables(a.index[last]) & inner:
            return False
    return True


def is_contraction(step: Einsum, types: Mapping[str, TensorType]) -> bool:
    """Whether register tiles suit the step: a sum of products of accesses with a free rank of one factor alone.

    Beside columns of a plain one the other may be 0 outside of its tensor.
    """
    factors = contraction_factors(step, types)
    if factors is None:
        return False
    free = moving_ranks(step)
    for rows, cols in (factors, factors[::-1]):
        a, b = bordered_access(rows), plain_access(cols)
        if a is None or b is None:
            continue
        if free & (b.variables - a.variables) or plain_access(rows) is not None and free & a.variables - b.variables:
            return True
    return False


def _reads_after(body: Sequence[Stmt], at_end: set[str]) -> list[set[str]]:
    """For each position, the tensors that statements from there on read (and those needed at the end)."""
    result = [set(at_end)]
    for stmt in reversed(body):
        result.append(result[-1] | set(stmt.reads))
    result.reverse()
    return result


def _follows(group: _Group, step: Einsum) -> bool:
    """Whether the step reads what the group makes block by block, `X[y // 4]` along a task rank."""
    extents = {r.name: r.extent for r in step.ranks}
    return any(
        c in group.outer and block_of(i, c, group.outer[c], extents) is not None
        for a in step.accesses()
        if a.tensor in group.dims
        for c, i in zip(group.dims[a.tensor], a.index, strict=True)
    )


def _suffix(group: _Group) -> str:
    """What makes the rank names of the group's next step its own."""
    return f"_{group.number}_{len(group.steps)}"


def _in_order(groups: list[_Group]) -> list[_Group]:
    """Groups after all they depend on, otherwise in program order."""
    done: set[int] = set()
    order: list[_Group] = []

    def visit(group: _Group) -> None:
        if group.number in done:
            return
        done.add(group.number)
        for n in sorted(group.depends):
            visit(groups[n])
        order.append(group)

    for group in groups:
        visit(group)
    return order


def _substitute_step(step: Step, env: dict[str, IntExpr]) -> Step:
    if isinstance(step, Scan):
        body = tuple(_substitute_step(s, env) for s in step.body)
        return replace(step, body=body, rank=Rank(step.rank.name, substitute(step.rank.extent, env)))
    exprs = tuple(e.substitute(env) for e in step.exprs)
    where = step.where.substitute(env) if step.where is not None else None
    write = step.write
    if write is not None:
        write = replace(write, index=tuple(substitute(i, env) for i in write.index))
    return replace(step, exprs=exprs, where=where, write=write)


def _rename_ranks(step: Einsum, names: dict[str, str], suffix: str) -> Einsum:
    """The step with its free ranks renamed by `names`, all others made unique by `suffix`."""
    full = {r.name: names.get(r.name, f"{r.name}{suffix}") for r in step.all_ranks}
    return rename_einsum(step, full, {})


def _canonical_ranks(group: _Group) -> dict[str, str]:
    """Names that do not depend on where the kernel came from: outer ranks first, then the others as they occur."""
    names: dict[str, str] = {}
    for n, old in enumerate(group.outer):
        names[old] = f"o{n}"
    count = 0
    for step in group.steps:
        for r in step.all_ranks:
            if r.name not in names:
                names[r.name] = f"r{count}"
                count += 1
    return names
