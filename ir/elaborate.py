"""From the parsed tree to IR nodes, statement by statement: names are resolved, missing types and extents inferred."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from lark import Token, Tree

from dlc.ir.dtype import BOOL, DTYPES, I64, DType
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, Step, TensorType, Write, result_types
from dlc.ir.errors import (
    ReductionArity,
    SyntaxFault,
    UndefinedTensor,
    UnknownKernel,
    UnknownName,
    UnknownReduction,
    UntypedOperand,
)
from dlc.ir.expr import Const, Expr
from dlc.ir.extent import IntExpr, sym, variables
from dlc.ir.loc import Loc
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import (
    Bind,
    Cascade,
    For,
    If,
    Kernel,
    Launch,
    Library,
    Loop,
    Param,
    Program,
    Region,
    Stmt,
    Symbol,
    Transfer,
    cascade_types,
    collect_step_types,
)
from dlc.ir.read_scalars import Node, Scalars, Source, name_of, names_in, suggestion

Item: TypeAlias = Program | Cascade | Kernel
Layout: TypeAlias = tuple[tuple[int, ...] | None, int]


@dataclass
class Elaborator:
    """Turns trees into programs, cascades and kernels, statement by statement."""

    lines: list[str]
    file: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    symbols: set[str] = field(default_factory=set)
    loops: frozenset[str] = frozenset()
    lenient: bool = False
    pending: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = Source(self.lines, self.file)

    def lone_expr(self, tree: Node, ranks: frozenset[str], types: Mapping[str, DType] | None) -> Expr:
        scalars = Scalars(self.source, ranks, set(), None if types is None else {}, dict(types or {}), lenient=True)
        return scalars.expr(tree)

    # --- items ---

    def items(self, tree: Node) -> list[Item]:
        result: list[Item] = []
        for item in tree.children:
            if not isinstance(item, Tree):
                continue
            self.types, self.symbols, self.loops, self.pending = {}, set(), frozenset(), {}
            self.lenient = item.data == "kernel"
            match item.data:
                case "kernel":
                    names, head, *rest = item.children
                    kernel = Kernel(self.cascade(head, rest, item), names_in(names))
                    self.kernels[kernel.name] = kernel
                    result.append(kernel)
                case "cascade":
                    head, *rest = item.children
                    result.append(self.cascade(head, rest, item))
                case "program":
                    head, *rest = item.children
                    result.append(self.program(head, rest, item))
        if not any(isinstance(i, Program) for i in result):
            return result
        kernels = tuple(i for i in result if isinstance(i, Kernel))
        return [
            replace(i, kernels=kernels) if isinstance(i, Program) else i for i in result if not isinstance(i, Kernel)
        ]

    def head(self, tree: Node) -> tuple[str, tuple[Param, ...], tuple[str, ...], tuple[Symbol, ...]]:
        name, params, results, symbols = tree.children
        declared = tuple(self.symbol(s) for s in symbols.children)
        return name_of(name), tuple(self.param(p) for p in params.children), names_in(results), declared

    def cascade(self, head: Node, rest: list[Node], whole: Node) -> Cascade:
        name, params, results, symbols = self.head(head)
        steps, yields = self.steps(rest[0])
        if yields is not None:
            self.source.fail(
                SyntaxFault, rest[0], found="a yield", expected="Einsums and scans (results stand in the head)"
            )
        return Cascade(name, params, tuple(steps), results, symbols, loc=self.loc(rest[1:], whole))

    def program(self, head: Node, rest: list[Node], whole: Node) -> Program:
        name, params, results, symbols = self.head(head)
        consts = [self.param_of(s.children[0], s.children[1]) for s in rest[0].children if _is(s, "const_decl")]
        body = [s for s in rest[0].children if isinstance(s, Tree) and s.data != "const_decl"]
        stmts, yields = self.statements(body)
        if yields is not None:
            self.source.fail(SyntaxFault, body[-1], found="a yield", expected="statements (results stand in the head)")
        region = Region(tuple(stmts), results)
        return Program(name, params, region, tuple(consts), symbols=symbols, loc=self.loc(rest[1:], whole))

    def param(self, tree: Node) -> Param:
        donate = isinstance(tree.children[0], Token) and tree.children[0].type == "DONATE"
        name, kind = tree.children[-2:]
        return self.param_of(name, kind, donate)

    def param_of(self, name: Any, kind: Node, donate: bool = False) -> Param:
        result = Param(name_of(name), self.tensor_type(kind), donate)
        self.types[result.name] = result.type
        return result

    def tensor_type(self, tree: Node) -> TensorType:
        name, extents, layout = tree.children
        shape = tuple(self.extent(e) for e in extents.children)
        return TensorType(self.dtype(name), shape, *self.layout(layout))

    def dtype(self, token: Any) -> DType:
        name = str(token)
        if name not in DTYPES:
            near = [t for t in DTYPES if abs(len(t) - len(name)) <= 1]
            hint = suggestion(name, near, f"known: {', '.join(DTYPES)}")
            self.source.fail(UnknownName, token, kind="element type", name=name, suggestion=hint)
        return DTYPES[name]

    def layout(self, tree: Node) -> Layout:
        if not tree.children:
            return None, 0
        *order, pitch = tree.children
        return tuple(int(t) for t in order) or None, int(pitch.children[0]) if pitch.children else 0

    def extent(self, node: Node) -> IntExpr:
        """An extent: bare names are symbols."""
        result = Scalars(self.source, frozenset(), self.symbols, {}, lenient=True).index(node)
        self.symbols |= {n[1:] for n in variables(result) if n.startswith("#")}
        return result

    def symbol(self, tree: Node) -> Symbol:
        name, lo, upper, divisor, below = tree.children
        hi = _signed(upper.children[0]) if upper.children else None
        by = int(divisor.children[0]) if divisor.children else 1
        self.symbols.add(name_of(name))
        limit = self.extent(below.children[0]) if below.children else None
        return Symbol(name_of(name), _signed(lo), hi, by, limit)

    def loc(self, rest: list[Any], node: Any) -> Loc:
        for child in rest:
            if _is(child, "loc"):
                text = json.loads(str(child.children[0]))
                parts = re.fullmatch(r"(.*):(\d+):(\d+)", text, re.DOTALL)
                return Loc(parts[1], int(parts[2]), int(parts[3])) if parts else Loc(text)
        return self.source.loc(node)

    # --- statements ---

    def steps(self, block: Node) -> tuple[list[Step], tuple[str, ...] | None]:
        stmts, yields = self.statements([s for s in block.children if isinstance(s, Tree)])
        steps: list[Step] = []
        for stmt in stmts:
            if not isinstance(stmt, (Einsum, Scan)):
                self.source.fail(SyntaxFault, block, found="a statement of a program", expected="Einsums and scans")
            steps.append(stmt)
        return steps, yields

    def statements(self, nodes: list[Node]) -> tuple[list[Stmt], tuple[str, ...] | None]:
        result: list[Stmt] = []
        yields: tuple[str, ...] | None = None
        for position, node in enumerate(nodes):
            if node.data == "yield_stmt":
                if position != len(nodes) - 1:
                    self.source.fail(SyntaxFault, node, found="a yield", expected="it at the end of the block")
                yields = names_in(node.children[0])
            else:
                result += self.statement(node)
        for tree in self.pending.values():
            self.source.fail(
                SyntaxFault, tree, found="a first value alone", expected="an iterative definition after it"
            )
        return result, yields

    def region(self, block: Node) -> Region:
        stmts, yields = self.statements([s for s in block.children if isinstance(s, Tree)])
        return Region(tuple(stmts), yields or ())

    def statement(self, node: Node) -> list[Stmt]:
        match node.data:
            case "einsum":
                return list(self.einsum(node))
            case "scatter":
                return [self.scatter(node)]
            case "tuple_einsum" | "tuple_einsum_each":
                return [self.tuple_einsum(node)]
            case "scan":
                return [self.scan(node)]
            case "launch":
                return [self.launch(node)]
            case "library":
                return [self.library(node)]
            case "bind":
                symbol = self.symbol(node.children[0])
                return [Bind(symbol, name_of(node.children[1]), self.loc(node.children, node))]
            case "spill" | "fill" as kind:
                return [Transfer(name_of(node.children[0]), kind == "fill", self.loc(node.children, node))]
            case "if_stmt":
                return [self.if_stmt(node)]
            case "for_stmt":
                return [self.for_stmt(node)]
            case "loop_stmt":
                return [self.loop_stmt(node)]
            case _:
                self.source.fail(SyntaxFault, node, found="a constant", expected="constants only in a program's body")

    def define(self, step: Step) -> None:
        collect_step_types(step, self.types)

    def scalars(self, ranks: Iterable[str], untyped: frozenset[str] = frozenset()) -> Scalars:
        return Scalars(
            self.source, self.loops.union(ranks), self.symbols, self.types, lenient=self.lenient, untyped=untyped
        )

    def rank_names(self, args: Node) -> list[str]:
        names = []
        for a in args.children:
            if a.children[0].data != "name":
                self.source.fail(SyntaxFault, a, found="an expression", expected="a rank's name")
            names.append(name_of(a.children[0].children[0]))
        return names

    def ranks(self, args: Node, body: list[Node]) -> tuple[Rank, ...]:
        result = []
        for a, name in zip(args.children, self.rank_names(args), strict=True):
            extent = self.extent(a.children[1]) if len(a.children) > 1 else self.implied_extent(name, a, body)
            result.append(Rank(name, extent))
        return tuple(result)

    def implied_extent(self, name: str, node: Node, body: list[Node]) -> IntExpr:
        """The symbol of the rank's name; where there is none, the extent of a dimension that the rank alone indexes."""
        if name in self.symbols or self.lenient:
            return sym(name)
        for tree in body:
            for read in tree.iter_subtrees_topdown():  # type: ignore[no-untyped-call]
                if read.data != "access" or name_of(read.children[0]) not in self.types:
                    continue
                shape = self.types[name_of(read.children[0])].shape
                for index, extent in zip(read.children[1].children, shape, strict=False):
                    if index.data == "name" and name_of(index.children[0]) == name:
                        return extent
        hint = "write it, as in `Z[i:4]`, or name the rank after an extent symbol of the inputs"
        self.source.fail(UnknownName, node, kind="extent of rank", name=name, suggestion=hint)

    def right_side(self, rhs: Node) -> tuple[Node | None, Node]:
        """(call of the reduction or None, value)."""
        inner = rhs.children[0]
        return (inner.children[0], inner.children[1]) if inner.data == "reduction" else (None, inner)  # type: ignore[return-value]

    def reduction(self, call: Node, body: list[Node]) -> Reduce:
        name = name_of(call.children[0])
        if name not in MONOIDS:
            self.source.fail(UnknownReduction, call, op=name, known=", ".join(MONOIDS))
        accumulator = None
        if len(call.children) == 3:
            accumulator = self.dtype(str(call.children[1]).strip("<> \t"))
        return Reduce(name, self.ranks(call.children[-1], body), accumulator)

    def body(
        self,
        node: Node,
        args: Node,
        rhs: Node,
        where: Node,
        declared: list[DType | None],
        untyped: frozenset[str] = frozenset(),
    ) -> tuple[tuple[Rank, ...], Reduce | None, tuple[Expr, ...], tuple[DType, ...], Expr | None]:
        """What scatter, single and tuple Einsums share."""
        call, tree = self.right_side(rhs)
        names = [*self.rank_names(args), *(self.rank_names(call.children[-1]) if call is not None else [])]
        trees = [rhs, where]
        ranks = self.ranks(args, trees)
        reduce = self.reduction(call, trees) if call is not None else None
        scalars = self.scalars(names, untyped)
        parts = [tree] if len(declared) == 1 else list(tree.children) if tree.data == "tuple" else [tree]
        if len(parts) != len(declared):
            op = reduce.op if reduce is not None else "tuple"
            self.source.fail(ReductionArity, node, op=op, expected=len(declared), given=len(parts))
        exprs, dtypes = [], []
        for part, given in zip(parts, declared, strict=True):
            own = reduce is None or reduce.accumulator is None
            e = scalars.expr(part, given if own else None)
            dtype = given or scalars.infer(part) or (e.dtype if isinstance(e, Const) else None)
            if dtype is None:
                dtype = self._settled_type(e, part)
            exprs.append(e)
            dtypes.append(dtype)
        domain = scalars.expr(where.children[0], BOOL) if where.children else None
        return ranks, reduce, tuple(exprs), tuple(dtypes), domain

    def _settled_type(self, e: Expr, node: Node) -> DType:
        from dlc.ir.expr import dtype_of

        try:
            return dtype_of(e, lambda name: self.types[name].dtype)
        except KeyError:
            self.source.fail(UntypedOperand, node, what=str(e))

    def einsum(self, node: Node) -> tuple[Step, ...]:
        from dlc.ir.sugar import is_iterative, iterative

        name, args, types, rhs, where, *rest = node.children
        if is_iterative(name_of(name), args, rhs):
            return iterative(self, node)
        dtypes, layout = self.result_types(types, 1)
        ranks, reduce, exprs, found, domain = self.body(node, args, rhs, where, dtypes)
        step = Einsum((name_of(name),), ranks, exprs, found, reduce, domain, None, *layout, self.loc(rest, node))
        self.define(step)
        return (step,)

    def result_types(self, tree: Node, count: int) -> tuple[list[DType | None], Layout]:
        if not tree.children:
            return [None] * count, (None, 0)
        *names, layout = tree.children
        dtypes: list[DType | None] = [self.dtype(n) for n in names]
        if len(dtypes) != count:
            self.source.fail(SyntaxFault, tree, found=f"{len(dtypes)} types", expected=f"{count}")
        return dtypes, self.layout(layout)

    def tuple_einsum(self, node: Node) -> Einsum:
        lefts = node.children[0].children
        if node.data == "tuple_einsum":
            _, args, types, rhs, where, *rest = node.children
            dtypes, layout = self.result_types(types, len(lefts))
        else:
            _, rhs, where, *rest = node.children
            if not lefts or any(left.data != "left_access" for left in lefts):
                self.source.fail(
                    SyntaxFault, node, found="a tuple without ranks", expected="(V[p], I[p]) = ... or (V, I)[p] = ..."
                )
            args, layout = lefts[0].children[1], (None, 0)
            dtypes = [self.dtype(left.children[2].children[0]) if left.children[2].children else None for left in lefts]
        names = tuple(name_of(left.children[0]) for left in lefts)
        ranks, reduce, exprs, found, domain = self.body(node, args, rhs, where, dtypes)
        step = Einsum(names, ranks, exprs, found, reduce, domain, None, *layout, self.loc(rest, node))
        self.types.update(zip(names, result_types(step), strict=True))
        return step

    def scatter(self, node: Node) -> Einsum:
        args, name, indices, types, op, rhs, where, onto, *rest = node.children
        target = name_of(onto)
        if target not in self.types:
            hint = suggestion(target, self.types, "define it above this line, or add it to the inputs")
            self.source.fail(UndefinedTensor, onto, tensor=target, suggestion=hint)
        dtypes, layout = self.result_types(types, 1)
        declared: list[DType | None] = [dtypes[0] or self.types[target].dtype]
        ranks, reduce, exprs, found, domain = self.body(node, args, rhs, where, declared)
        names = [r.name for r in ranks] + [r.name for r in (reduce.ranks if reduce is not None else ())]
        scalars = self.scalars(names)
        place = tuple(scalars.index(i) for i in indices.children)
        drop = any(isinstance(t, Token) and t.type == "DROP" for t in rest)
        write = Write(place, target, str(op), drop)
        step = Einsum((name_of(name),), ranks, exprs, found, reduce, domain, write, *layout, self.loc(rest, node))
        self.define(step)
        return step

    def carries(self, pairs: Node) -> list[tuple[str, str]]:
        result = []
        for pair in pairs.children:
            name, init = name_of(pair.children[0]), name_of(pair.children[1])
            self._known(init, pair.children[1])
            self.types[name] = self.types[init]
            result.append((name, init))
        return result

    def _known(self, name: str, token: Any) -> None:
        if name not in self.types:
            hint = suggestion(name, self.types, "define it above this line, or add it to the inputs")
            self.source.fail(UndefinedTensor, token, tensor=name, suggestion=hint)

    def scan(self, node: Node) -> Scan:
        arg, pairs, block, finals, *rest = node.children
        if arg.children[0].data != "name":
            self.source.fail(SyntaxFault, arg, found="an expression", expected="a rank's name")
        name = name_of(arg.children[0].children[0])
        extent = self.extent(arg.children[1]) if len(arg.children) > 1 else self.implied_extent(name, arg, [block])  # type: ignore[list-item]
        carries = tuple(Carry(n, i) for n, i in self.carries(pairs))
        outside, self.loops = self.loops, self.loops | {name}
        pending, self.pending = self.pending, {}
        body, yields = self.steps(block)
        self.loops, self.pending = outside, pending
        stacked = tuple((name_of(s.children[0]), name_of(s.children[1])) for s in rest if _is(s, "stack"))
        for s in rest:
            if _is(s, "stack"):
                self._known(name_of(s.children[1]), s.children[1])
        step = Scan(
            Rank(name, extent), carries, tuple(body), yields or (), names_in(finals), stacked, self.loc(rest, node)
        )
        if len(step.finals) != len(step.carries):
            self.source.fail(
                SyntaxFault, finals, found=f"{len(step.finals)} final values", expected=f"{len(step.carries)}"
            )
        self.define(step)
        return step

    def launch(self, node: Node) -> Launch:
        lefts, kernel, args, *rest = node.children
        name = name_of(kernel)
        if name not in self.kernels:
            self.source.fail(
                UnknownKernel, kernel, name=name, suggestion=suggestion(name, self.kernels, "define it above")
            )
        outs = tuple(name_of(left.children[0]) for left in lefts.children)
        cascade = self.kernels[name].cascade
        made = cascade_types(cascade)
        if len(outs) != len(cascade.results):
            self.source.fail(SyntaxFault, lefts, found=f"{len(outs)} results", expected=f"{len(cascade.results)}")
        self.types.update({o: made[r] for o, r in zip(outs, cascade.results, strict=True)})
        return Launch(name, names_in(args), outs, self.loc(rest, node))

    def library(self, node: Node) -> Library:
        lefts, op, args, attrs, binds, *rest = node.children
        symbols = tuple(self.symbol(s) for s in binds.children)
        outs, types = [], []
        for left in lefts.children:
            if left.data != "left_typed":
                self.source.fail(SyntaxFault, left, found="a result without its type", expected="`name: f32[...]`")
            outs.append(name_of(left.children[0]))
            types.append(self.tensor_type(left.children[1]))
        self.types.update(zip(outs, types, strict=True))
        values = tuple((name_of(a.children[0]), _attribute(a.children[1])) for a in attrs.children)
        return Library(name_of(op), names_in(args), tuple(outs), tuple(types), values, symbols, self.loc(rest, node))

    def if_stmt(self, node: Node) -> If:
        cond, then, orelse, outs, *rest = node.children
        first, second = self.region(then), self.region(orelse)
        names = names_in(outs)
        for name, inner in zip(names, first.yields, strict=False):
            self._known(inner, then)
            self.types[name] = self.types[inner]
        return If(name_of(cond), first, second, names, self.loc(rest, node))

    def for_stmt(self, node: Node) -> For:
        symbol, _, extent, pairs, block, finals, *rest = node.children
        step, limit = self.symbol(symbol), self.extent(extent)
        carries = tuple(self.carries(pairs))
        body = self.region(block)
        stacked = tuple((name_of(s.children[0]), name_of(s.children[1])) for s in rest if _is(s, "stack"))
        names = names_in(finals)
        for final, (_, init) in zip(names, carries, strict=False):
            self.types[final] = self.types[init]
        for s, (outer, inner) in zip([s for s in rest if _is(s, "stack")], stacked, strict=True):
            self._known(inner, s.children[1])
            self.types[outer] = TensorType(self.types[inner].dtype, (limit, *self.types[inner].shape))
        return For(step, limit, carries, body, names, stacked, self.loc(rest, node))

    def loop_stmt(self, node: Node) -> Loop:
        index, limit, cond, pairs, block, finals, collected, upto, *rest = node.children
        self.types[name_of(index)] = TensorType(I64, ())
        carries = tuple(self.carries(pairs))
        body = self.region(block)
        count = self.symbol(upto.children[0]) if upto.children else None
        names, rows = names_in(finals), names_in(collected)
        for final, (_, init) in zip(names, carries, strict=False):
            self.types[final] = self.types[init]
        if rows and count is None:
            self.source.fail(
                SyntaxFault, collected, found="collected tensors", expected="`upto n in 0..` that names their count"
            )
        inner = body.yields[len(body.yields) - len(rows) :]
        for name, row in zip(rows, inner, strict=False):
            self._known(row, block)
            assert count is not None
            self.types[name] = TensorType(self.types[row].dtype, (sym(count.name), *self.types[row].shape))
        limit_name = name_of(limit.children[-1]) if limit.children else None
        cond_name = name_of(cond.children[0]) if cond.children else None
        return Loop(name_of(index), limit_name, cond_name, carries, body, names, rows, count, self.loc(rest, node))


def _is(node: Any, kind: str) -> bool:
    return isinstance(node, Tree) and node.data == kind


def _signed(tree: Node) -> int:
    number = int(tree.children[-1])
    return -number if len(tree.children) > 1 else number


def _attribute(tree: Node) -> int | float | bool | str:
    *sign, token = tree.children
    match token.type:
        case "STRING":
            return str(json.loads(str(token)))
        case "TRUE" | "FALSE":
            return bool(token.type == "TRUE")
        case "INT":
            return -int(token) if sign else int(token)
        case _:
            number = float("inf") if str(token) in ("inf", "Infinity") else float(str(token).lower())
            return -number if sign else number
