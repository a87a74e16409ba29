"""Integer expressions of the manifest: shapes, sizes and task counts over symbols, evaluated safely and fast.

The language is `+ - * // %`, unary minus, `min(...)`, `max(...)`, integers and names.  An expression is checked
node by node against that list and only then compiled to Python bytecode; nothing else of Python is reachable.
Integers do not overflow on the way; a result outside 64 bits, or a division by zero, is an error with a code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

from dlc.runtime.errors import BadExpression, CannotEvaluate

I64_MIN = -(2**63)
I64_MAX = 2**63 - 1
MAX_LENGTH = 4096
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
    try:
        body = ast.Tuple(elts=[_Rename().visit(tree) for tree in trees], ctx=ast.Load())
        function = ast.Lambda(args=arguments, body=body)
        code = compile(ast.fix_missing_locations(ast.Expression(function)), "<manifest>", "eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        raise BadExpression(text=_shorten(" ; ".join(shown)), reason="it is nested too deeply") from None
    raw = eval(code, {"__builtins__": {}, "min": min, "max": max})  # the tree was checked node by node above

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


class _Rename(ast.NodeTransformer):
    """Parameters get a prefix, so that a symbol may have a name that is a keyword of Python."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return node if node.id in ("min", "max") else ast.Name(id=_hide(node.id), ctx=ast.Load())


def _hide(name: str) -> str:
    return f"_s_{name}"


def _divides_by_zero(tree: ast.expr, names: Sequence[str], values: Sequence[int]) -> bool:
    function = ast.Expression(tree)
    scope = {_hide(name): value for name, value in zip(names, values)}
    code = compile(ast.fix_missing_locations(function), "<manifest>", "eval")
    try:
        eval(code, {"__builtins__": {}, "min": min, "max": max}, scope)
    except ZeroDivisionError:
        return True
    return False


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
