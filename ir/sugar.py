"""Iterative ranks: one Einsum that reads its own earlier value, as a scan.

    Z[i] = Z[i-1] + A[i]                       Z[i] = (Z[i-1] else 5.0) * A[i]
    RM[0, p] = -inf
    RM[i+1, p] = max(RM[i, p], X[i, p])        RM then has one row more than there are steps

Without a first value the operator's identity is taken where the right side is a fold (`+`, `*`, max, min).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lark import Tree

from dlc.ir.dtype import I64, DType
from dlc.ir.einsum import Carry, Einsum, Rank, Scan, Step, TensorType, einsum
from dlc.ir.errors import SyntaxFault
from dlc.ir.expr import Access, Apply, Const, Expr, Index, Piecewise, accesses, const, transform
from dlc.ir.extent import IntExpr, int_expr, split_linear, var, variables
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import fresh_name
from dlc.ir.read_scalars import name_of

if TYPE_CHECKING:
    from dlc.ir.elaborate import Elaborator
    from dlc.ir.read_scalars import Node

_FOLDS = {"add": "sum", "mul": "prod", "max": "max", "min": "min", "and": "and", "or": "or", "xor": "xor"}


def is_iterative(name: str, args: Node, rhs: Node) -> bool:
    """Whether the left side has an index that is no plain rank, or the right side reads what it defines."""
    if any(a.children[0].data != "name" for a in args.children):
        return True
    return any(t.data == "access" and name_of(t.children[0]) == name for t in rhs.iter_subtrees())


def iterative(elaborator: Elaborator, node: Node) -> tuple[Step, ...]:
    """The scan that an iterative definition means; a first value (`RM[0, p] = ...`) is kept until that comes."""
    name = name_of(node.children[0])
    args = node.children[1]
    if any(a.children[0].data == "literal" for a in args.children):
        if name in elaborator.pending:
            elaborator.source.fail(SyntaxFault, node, found="a second first value", expected="an iterative definition")
        elaborator.pending[name] = node
        return ()
    return _Iteration(elaborator, node, name).steps()


class _Iteration:
    """One iterative definition being turned into a scan."""

    def __init__(self, elaborator: Elaborator, node: Node, name: str) -> None:
        self.elaborator, self.node, self.name = elaborator, node, name
        _, self.args, self.types, self.rhs, self.where, *self.rest = node.children
        self.loc = elaborator.loc(self.rest, node)

    def fail(self, node: Any, found: str, expected: str) -> Any:
        self.elaborator.source.fail(SyntaxFault, node, found=found, expected=expected)

    def steps(self) -> tuple[Step, ...]:
        e = self.elaborator
        shifted = [k for k, a in enumerate(self.args.children) if a.children[0].data != "name"]
        ranks_tree = _plain_ranks(self.args)
        names = e.rank_names(ranks_tree)
        dtypes, layout = e.result_types(self.types, 1)
        if layout != (None, 0):
            self.fail(self.types, "a layout", "none on an iterative definition")
        # its own type is not known while it is being inferred; afterwards it only must be some tensor
        dtype = dtypes[0] or self._infer(names)
        e.types[self.name] = TensorType(dtype, (int_expr(0),) * len(names))
        ranks, reduce, exprs, _, where = e.body(self.node, ranks_tree, self.rhs, self.where, [dtype])
        del e.types[self.name]
        own = [a for a in accesses(exprs[0]) if a.tensor == self.name]
        if not own:
            self.fail(self.args, "an index that is no rank", "a rank's name (nothing here reads an earlier value)")
        position = shifted[0] if shifted else self._lagged(own, names)
        if len(shifted) > 1:
            self.fail(self.args, "two shifted indices", "one iterative rank")
        step_rank = ranks[position]
        first = self._first_index(position) if shifted else 0
        others = tuple(r for k, r in enumerate(ranks) if k != position)
        default = self._check_own(own, position, step_rank.name, lag=0 if shifted else 1)
        taken = {*e.types, self.name}
        prev, cur, init, last, rows = (
            self._fresh(f"{self.name}_{s}", taken) for s in ("prev", "cur", "init", "last", "rows")
        )

        def carried(x: Expr) -> Expr | None:
            if isinstance(x, Access) and x.tensor == self.name:
                return Access(prev, tuple(i for k, i in enumerate(x.index) if k != position))
            return None

        start = self._start(init, others, dtype, exprs[0], default, position)
        body = einsum(cur, others, transform(exprs[0], carried), dtype, reduce=reduce, where=where, loc=self.loc)
        plain = position == 0 and not first
        stacked = self.name if plain else rows
        scan = Scan(step_rank, (Carry(prev, init),), (body,), (cur,), (last,), ((stacked, cur),), self.loc)
        e.define(scan)
        made: list[Step] = [*start, scan]
        if not plain:
            made.append(self._gathered(ranks, position, rows, init, first, dtype))
            e.define(made[-1])
        return tuple(made)

    def _fresh(self, base: str, taken: set[str]) -> str:
        name = fresh_name(base, taken)
        taken.add(name)
        return name

    def _infer(self, names: list[str]) -> DType:
        from dlc.ir.errors import UntypedOperand

        e = self.elaborator
        call, tree = e.right_side(self.rhs)
        bound = e.rank_names(call.children[-1]) if call is not None else []
        dtype = e.scalars([*names, *bound], untyped=frozenset({self.name})).infer(tree)
        if dtype is None:
            e.source.fail(UntypedOperand, self.node, what=self.name)
        return dtype

    def _lagged(self, own: list[Access], names: list[str]) -> int:
        for k, name in enumerate(names):
            if all(len(a.index) == len(names) and a.index[k] == var(name) - 1 for a in own):
                return k
        return self.fail(
            self.rhs, f"a read of '{self.name}' inside its own definition", "it one step back, as in Z[i-1]"
        )

    def _first_index(self, position: int) -> int:
        """1 for `RM[i+1] = ... RM[i]`."""
        tree = self.args.children[position].children[0]
        e = self.elaborator.scalars([_only_name(tree) or ""]).index(tree)
        name = _only_name(tree)
        parts = split_linear(e, name) if name else None
        if parts is None or parts[0].const != 1 or parts[1].const != 1:
            self.fail(tree, "this index", "`i+1` on the left of an iterative definition")
        return 1

    def _check_own(self, own: list[Access], position: int, rank: str, lag: int) -> Expr | None:
        wanted = var(rank) - lag
        default: Expr | None = None
        for a in own:
            if a.index[position] != wanted:
                self.fail(self.rhs, f"the read '{a}'", f"'{self.name}' at {wanted} (one step back)")
            for k, i in enumerate(a.index):
                if k != position and rank in variables(i):
                    self.fail(self.rhs, f"the read '{a}'", f"other indices without '{rank}'")
            default = a.default if a.default is not None else default
        return default

    def _start(
        self, init: str, others: tuple[Rank, ...], dtype: DType, e: Expr, default: Expr | None, position: int
    ) -> list[Step]:
        given = self.elaborator.pending.pop(self.name, None)
        if given is not None:
            name, args, types, rhs, where, *rest = given.children
            kept = [a for k, a in enumerate(args.children) if k != position]
            token = name.update(value=init)
            if not types.children:
                types = Tree("types", [str(dtype), Tree("layout", [])])  # type: ignore[list-item]
            tree = Tree("einsum", [token, Tree("args", kept, args.meta), types, rhs, where, *rest], given.meta)
            return list(self.elaborator.einsum(tree))
        value = default if default is not None else self._identity(e, dtype)
        step = einsum(init, others, value, dtype, loc=self.loc)
        self.elaborator.define(step)
        return [step]

    def _identity(self, e: Expr, dtype: DType) -> Const:
        if (
            isinstance(e, Apply)
            and e.op in _FOLDS
            and any(isinstance(a, Access) and a.tensor == self.name for a in e.args)
        ):
            return MONOIDS[_FOLDS[e.op]].identity((dtype,))[0]
        return self.fail(self.node, "no first value", f"`{self.name}[i-1] else v`, or `{self.name}[0] = v` above")

    def _gathered(
        self, ranks: tuple[Rank, ...], position: int, rows: str, init: str, first: int, dtype: DType
    ) -> Einsum:
        """The rows in their place among the other ranks, with the first value in front where the left side was `i+1`."""
        step = ranks[position]
        others = tuple(var(r.name) for k, r in enumerate(ranks) if k != position)
        i: IntExpr = var(step.name)
        value: Expr = Access(rows, (i - first, *others))
        if first:
            value = Piecewise(((Apply("lt", (Index(i), const(1, I64))), Access(init, others)),), value)
        full = tuple(replace(r, extent=r.extent + first) if k == position else r for k, r in enumerate(ranks))
        return einsum(self.name, full, value, dtype, loc=self.loc)


def _plain_ranks(args: Node) -> Node:
    """The left side's arguments with `i+1` replaced by `i`."""
    plain = []
    for a in args.children:
        tree = a.children[0]
        if tree.data == "name":
            plain.append(a)
            continue
        name = next((t for t in tree.iter_subtrees_topdown() if t.data == "name"), tree)
        plain.append(Tree("arg", [name, *a.children[1:]], a.meta))
    return Tree("args", plain, args.meta)


def _only_name(tree: Node) -> str | None:
    names = {name_of(t.children[0]) for t in tree.iter_subtrees() if t.data == "name"}
    return names.pop() if len(names) == 1 else None
