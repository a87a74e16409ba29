"""Integer expressions of the manifest: shapes, sizes and task counts over symbols, evaluated safely and fast.

The language is `+ - * // %`, unary minus, `min(...)`, `max(...)`, integers and names.  An expression is checked
node by node against that list and only then compiled to Python bytecode; nothing else of Python is reachable.
Integers do not overflow on the way; a result outside 64 bits, or a division by zero, is an error with a code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Sequence
from types import CodeType

from dlc.runtime.errors import BadExpression, CannotEvaluate

I64_MIN = -(2**63)
I64_MAX = 2**63 - 1
MAX_LENGTH = 1 << 16
"""Characters in one expression: a longer one would only serve to exhaust the parser's stack."""

_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)
RESERVED = frozenset({"min", "max", "False", "None", "True"})


def parse_expression(text: object, names: Iterable[str]) -> ast.expr:
    """The checked syntax tree of `text` (a string or an int), which may use only `names`.

    Raises:
        BadExpression: it is not in the language, or uses an unknown name.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text) if abs(text) <= I64_MAX else "?"
    if not isinstance(text, str):
        raise BadExpression(text=_shorten(repr(text)), reason="it is neither a string nor an integer")
    if len(text) > MAX_LENGTH:
        raise BadExpression(text=_shorten(text), reason=f"it has more than {MAX_LENGTH} characters")
    if not text.isascii() or any(c in text for c in "\n\r\0\t\\#'\""):
        raise BadExpression(text=_shorten(text), reason="it has characters that no expression needs")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        raise BadExpression(text=_shorten(text), reason="it cannot be parsed") from None
    known = frozenset(names)
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        match node:
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                if value > I64_MAX:
                    raise BadExpression(text=_shorten(text), reason="a number in it needs more than 64 bits")
            case ast.Name(id=name):
                if name not in known:
                    have = ", ".join(sorted(known)) or "none"
                    raise BadExpression(text=_shorten(text), reason=f"unknown symbol '{name}' (known: {have})")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                stack.append(operand)
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _BINARY):
                stack += (left, right)
            case ast.Call(func=ast.Name(id="min" | "max"), args=[_, _, *_] as args, keywords=[]):
                stack += args
            case _:
                raise BadExpression(text=_shorten(text), reason=f"'{type(node).__name__}' is not allowed in it")
    return tree


def compile_expressions(texts: Sequence[object], names: Sequence[str]) -> Callable[..., tuple[int, ...]]:
    """One function of `names` (in that order, by position) that evaluates all `texts`.

    Raises:
        BadExpression: one of them is not in the language.
        (when called) CannotEvaluate: division by zero, or a value outside 64 bits.
    """
    trees = [parse_expression(text, names) for text in texts]
    shown = tuple(str(text) for text in texts)
    parameters = [ast.arg(arg=_hide(name)) for name in names]
    arguments = ast.arguments(posonlyargs=parameters, args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    for tree in trees:
        _rename(tree)
    function = ast.Lambda(args=arguments, body=ast.Tuple(elts=list(trees), ctx=ast.Load()))
    try:
        code = _compile(function)
        raw = eval(code, {"__builtins__": {}, "min": min, "max": max})  # the tree was checked node by node above
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        # a sum of a thousand terms is too deep for Python's compiler
        programs = [_postfix(tree, [_hide(name) for name in names]) for tree in trees]

        def raw(*values: int) -> tuple[int, ...]:
            return tuple(_interpret(program, values) for program in programs)

    def evaluate(*values: int) -> tuple[int, ...]:
        try:
            results: tuple[int, ...] = raw(*values)
        except ZeroDivisionError:
            text = next((t for t, tree in zip(shown, trees) if _divides_by_zero(tree, names, values)), "?")
            given = ", ".join(f"{n}={v}" for n, v in zip(names, values))
            raise CannotEvaluate(reason=f"'{text}' divides by zero for {given}") from None
        for text, result in zip(shown, results):
            if not I64_MIN <= result <= I64_MAX:
                raise CannotEvaluate(reason=f"'{text}' is {result}, which needs more than 64 bits")
        return results

    return evaluate


def names_in(text: object, names: Iterable[str]) -> frozenset[str]:
    """The symbols that the expression uses."""
    nodes = ast.walk(parse_expression(text, names))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name)) - RESERVED


def solve_affine(at: Callable[[int], int], value: int) -> int | None:
    """The x >= 0 for which `at(x) == value`, where `at` is affine; None if there is none."""
    offset = at(0)
    slope = at(1) - offset
    if slope == 0:
        return None
    x, rest = divmod(value - offset, slope)
    return x if rest == 0 and x >= 0 and at(x) == value else None


def _rename(tree: ast.AST) -> None:
    """Give symbols a prefix in place: none then collides with `min`, `max` or a name of Python's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in RESERVED:
            node.id = _hide(node.id)


def _compile(function: ast.expr) -> CodeType:
    """Bytecode of an expression; walks without recursion, as sums of a thousand terms are that deep."""
    for node in ast.walk(function):
        if isinstance(node, (ast.expr, ast.arg)):
            node.lineno = node.end_lineno = 1
            node.col_offset = node.end_col_offset = 0
    return compile(ast.Expression(function), "<manifest>", "eval")


_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_Instruction = tuple[Callable[..., int] | None, int]


def _postfix(tree: ast.expr, names: Sequence[str]) -> list[_Instruction]:
    """Stack code: (None, n >= 0) pushes parameter n, (function, k) applies it to k values, (None, -1 - n) pushes n."""
    program: list[_Instruction] = []
    stack: list[ast.expr] = [tree]
    while stack:  # root, then right before left; reversed below
        match stack.pop():
            case ast.Constant(value=int() as value):
                program.append((None, -1 - value))
            case ast.Name(id=name):
                program.append((None, names.index(name)))
            case ast.UnaryOp(operand=operand):
                program.append((operator.neg, 1))
                stack.append(operand)
            case ast.BinOp(left=left, op=op, right=right):
                program.append((_OPERATORS[type(op)], 2))
                stack += (left, right)
            case ast.Call(func=ast.Name(id=name), args=args):
                program.append((min if name == "min" else max, len(args)))
                stack += args
    program.reverse()
    return program


def _interpret(program: list[_Instruction], values: Sequence[int]) -> int:
    stack: list[int] = []
    for function, number in program:
        if function is None:
            stack.append(values[number] if number >= 0 else -1 - number)
        else:
            operands = stack[-number:]
            stack[-number:] = [function(*operands)]
    return stack[0]


def _hide(name: str) -> str:
    return f"_s_{name}"


def _divides_by_zero(tree: ast.expr, names: Sequence[str], values: Sequence[int]) -> bool:
    try:
        _interpret(_postfix(tree, [_hide(name) for name in names]), values)
    except ZeroDivisionError:
        return True
    return False


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
