"""Python functions over integers and arrays of integers, as MLIR of the llvm dialect.

Planning at compile time has a search whose inner loop is too slow in Python, and a user has no C compiler. So such a
loop is written in a subset of Python that means the same in both worlds and is compiled by this module: a function of
`int` and array parameters whose statements are assignments, `if`, `while`, `for ... in range`, `break`, `continue` and
`return`, and whose expressions are integers with + - * // (rounding down), comparisons, `and`, `or`, `not`, `min` and `max`
of two, indexing, and capital-letter constants of its module. Integers have 64 bits and are not checked for overflow;
indices are not checked either, and a negative one does not count from the end.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from dlc.errors import Internal

_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}
_COMPARE = {ast.Lt: "slt", ast.LtE: "sle", ast.Gt: "sgt", ast.GtE: "sge", ast.Eq: "eq", ast.NotEq: "ne"}


def integers_mlir(function: Callable[..., int]) -> str:
    """The function as `llvm.func` of its name: every scalar an i64, every parameter that is not `int` a pointer to i64s.

    Raises:
        Internal: the function uses what the subset lacks, with the line.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return _Function(tree, vars(sys.modules[function.__module__])).text()


class _Function:
    def __init__(self, tree: ast.FunctionDef, constants: dict[str, Any]) -> None:
        self.tree = tree
        self.constants = constants
        self.lines: list[str] = []
        self.count = 0
        self.scalars = {a.arg for a in tree.args.args if ast.unparse(a.annotation or a) == "int"}
        self.arrays = {a.arg for a in tree.args.args} - self.scalars
        stored = (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        self.variables = self.scalars | set(stored)
        self.loops: list[tuple[str, str]] = []  # where `continue` and `break` go

    def text(self) -> str:
        params = (f"%{a.arg}: {'i64' if a.arg in self.scalars else '!llvm.ptr'}" for a in self.tree.args.args)
        one = self.constant(1)
        for name in sorted(self.variables):
            self.emit(f"%v_{name} = llvm.alloca {one} x i64 : (i64) -> !llvm.ptr")
        for name in sorted(self.scalars):
            self.emit(f"llvm.store %{name}, %v_{name} : i64, !llvm.ptr")
        self.block(self.tree.body)
        self.emit("llvm.unreachable")
        body = "\n".join(self.lines)
        return f"llvm.func @{self.tree.name}({', '.join(params)}) -> i64 {{\n{body}\n}}\n"

    # -- statements

    def block(self, body: list[ast.stmt]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: ast.stmt) -> None:
        match stmt:
            case ast.Assign([target], value):
                self.assign(target, self.value(value))
            case ast.AugAssign(target, op, value):
                read = ast.copy_location(ast.parse(ast.unparse(target), mode="eval").body, target)
                self.assign(target, self.value(ast.copy_location(ast.BinOp(read, op, value), stmt)))
            case ast.If(test, body, orelse):
                then, other, after = self.labels("then", "else", "endif")
                self.branch(test, then, other)
                self.part(then, body, after)
                self.part(other, orelse, after)
                self.label(after)
            case ast.While(test, body, []):
                head, inside, after = self.labels("while", "body", "done")
                self.emit(f"llvm.br ^{head}")
                self.label(head)
                self.branch(test, inside, after)
                self.loop(inside, body, head, after)
            case ast.For(ast.Name(name), ast.Call(ast.Name("range"), [*bounds]), body, []):
                self.count_up(name, bounds, body)
            case ast.Break():
                self.jump(self.loops[-1][1])
            case ast.Continue():
                self.jump(self.loops[-1][0])
            case ast.Return(ast.expr() as value):
                self.emit(f"llvm.return {self.value(value)} : i64")
                self.label(self.labels("dead")[0])
            case ast.Expr(ast.Constant(str())):
                pass
            case _:
                raise self.refused(stmt)

    def count_up(self, name: str, bounds: list[ast.expr], body: list[ast.stmt]) -> None:
        """A loop over a range, whose end is read once, before it."""
        head, inside, step, after = self.labels("for", "body", "step", "done")
        begin, end = [self.constant(0)] * (len(bounds) == 1) + [self.value(b) for b in bounds]
        counter = self.fresh()  # the variable itself may be assigned in the body
        self.emit(f"llvm.br ^{head}({begin} : i64)")
        self.lines.append(f"^{head}({counter}: i64):")
        self.emit(f'{(more := self.fresh())} = llvm.icmp "slt" {counter}, {end} : i64')
        self.emit(f"llvm.cond_br {more}, ^{inside}, ^{after}")
        self.label(inside)
        self.store(name, counter)
        self.loops.append((step, after))
        self.block(body)
        self.loops.pop()
        self.emit(f"llvm.br ^{step}")
        self.label(step)
        self.emit(f"{(following := self.fresh())} = llvm.add {counter}, {self.constant(1)} : i64")
        self.emit(f"llvm.br ^{head}({following} : i64)")
        self.label(after)

    def loop(self, inside: str, body: list[ast.stmt], head: str, after: str) -> None:
        self.loops.append((head, after))
        self.part(inside, body, head)
        self.loops.pop()
        self.label(after)

    def part(self, label: str, body: list[ast.stmt], after: str) -> None:
        self.label(label)
        self.block(body)
        self.emit(f"llvm.br ^{after}")

    def jump(self, label: str) -> None:
        self.emit(f"llvm.br ^{label}")
        self.label(self.labels("dead")[0])  # what follows is never reached, but needs a block

    def assign(self, target: ast.expr, value: str) -> None:
        match target:
            case ast.Name(name):
                self.store(name, value)
            case ast.Subscript(ast.Name(array), index) if array in self.arrays:
                self.emit(f"llvm.store {value}, {self.element(array, index)} : i64, !llvm.ptr")
            case _:
                raise self.refused(target)

    # -- expressions

    def value(self, e: ast.expr) -> str:
        """An i64."""
        match e:
            case ast.Constant(int(number)):
                return self.constant(number)
            case ast.Name(name) if name in self.variables:
                return self.op(f"llvm.load %v_{name} : !llvm.ptr -> i64")
            case ast.Name(name) if isinstance(self.constants.get(name), int):
                return self.constant(self.constants[name])
            case ast.Subscript(ast.Name(array), index) if array in self.arrays:
                return self.op(f"llvm.load {self.element(array, index)} : !llvm.ptr -> i64")
            case ast.UnaryOp(ast.USub(), operand):
                return self.op(f"llvm.sub {self.constant(0)}, {self.value(operand)} : i64")
            case ast.BinOp(a, ast.FloorDiv(), b):
                return self.floor_divide(self.value(a), self.value(b))
            case ast.BinOp(a, op, b) if type(op) in _BINARY:
                left, right = self.value(a), self.value(b)
                return self.op(f"llvm.{_BINARY[type(op)]} {left}, {right} : i64")
            case ast.Call(ast.Name("min" | "max" as name), [a, b]):
                left, right = self.value(a), self.value(b)
                return self.op(f"llvm.intr.s{name}({left}, {right}) : (i64, i64) -> i64")
            case _:
                raise self.refused(e)

    def floor_divide(self, a: str, b: str) -> str:
        """The quotient rounded down: one less than the truncated one where there is a rest of the other sign."""
        quotient = self.op(f"llvm.sdiv {a}, {b} : i64")
        rest = self.op(f"llvm.srem {a}, {b} : i64")
        mixed = self.op(f"llvm.xor {rest}, {b} : i64")
        zero = self.constant(0)
        inexact = self.op(f'llvm.icmp "ne" {rest}, {zero} : i64')
        other = self.op(f'llvm.icmp "slt" {mixed}, {zero} : i64')
        less = self.op(f"llvm.and {inexact}, {other} : i1")
        return self.op(f"llvm.sub {quotient}, {self.op(f'llvm.zext {less} : i1 to i64')} : i64")

    def branch(self, test: ast.expr, then: str, other: str) -> None:
        """Go to `then` where the test holds and to `other` where not, without looking further than needed."""
        match test:
            case ast.BoolOp(op, [a, *rest]):
                more = rest[0] if len(rest) == 1 else ast.copy_location(ast.BoolOp(op, rest), test)
                (between,) = self.labels("and" if isinstance(op, ast.And) else "or")
                if isinstance(op, ast.And):
                    self.branch(a, between, other)
                else:
                    self.branch(a, then, between)
                self.label(between)
                self.branch(more, then, other)
            case ast.UnaryOp(ast.Not(), operand):
                self.branch(operand, other, then)
            case ast.Compare(a, [op], [b]) if type(op) in _COMPARE:
                left, right = self.value(a), self.value(b)
                holds = self.op(f'llvm.icmp "{_COMPARE[type(op)]}" {left}, {right} : i64')
                self.emit(f"llvm.cond_br {holds}, ^{then}, ^{other}")
            case _:
                holds = self.op(f'llvm.icmp "ne" {self.value(test)}, {self.constant(0)} : i64')
                self.emit(f"llvm.cond_br {holds}, ^{then}, ^{other}")

    def element(self, array: str, index: ast.expr) -> str:
        return self.op(f"llvm.getelementptr %{array}[{self.value(index)}] : (!llvm.ptr, i64) -> !llvm.ptr, i64")

    # -- text

    def op(self, text: str) -> str:
        name = self.fresh()
        self.emit(f"{name} = {text}")
        return name

    def constant(self, number: int) -> str:
        return self.op(f"llvm.mlir.constant({number} : i64) : i64")

    def store(self, name: str, value: str) -> None:
        self.emit(f"llvm.store {value}, %v_{name} : i64, !llvm.ptr")

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def label(self, label: str) -> None:
        self.lines.append(f"^{label}:")

    def labels(self, *stems: str) -> list[str]:
        self.count += 1
        return [f"{stem}{self.count}" for stem in stems]

    def fresh(self) -> str:
        self.count += 1
        return f"%x{self.count}"

    def refused(self, node: ast.AST) -> Internal:
        line = getattr(node, "lineno", 0)
        return Internal(message=f"{self.tree.name}, line {line}: '{ast.unparse(node)}' is not in the subset")


__all__ = ["integers_mlir"]
