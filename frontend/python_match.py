"""`match` as the `if` and `elif` that it stands for, so that its cases may be decided by data.

    match n:                          matched = n
        case 1 | 2: ...        ->     if matched == 1 or matched == 2: ...
        case int() if n > k: ...      elif isinstance(matched, int) and n > k: ...
        case other: ...               else: other = matched; ...

Patterns of dicts, with a star, and of classes that take theirs apart by position stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dlc.frontend.python_names import stored

_WHOLE = frozenset("bool bytearray bytes dict float frozenset int list set str tuple".split())
"""Classes whose pattern takes the whole subject as its one part."""


class _Stays(Exception):
    """The pattern is none that conditions stand for."""


@dataclass
class _Found:
    """What a pattern asks of its subject, and which names it gives to parts."""

    tests: list[ast.expr] = field(default_factory=list)
    names: dict[str, ast.expr] = field(default_factory=dict)


def without_match(function: ast.FunctionDef) -> ast.FunctionDef:
    """The function with its `match` statements as conditions, where conditions can stand for them."""
    made = _Rewriter(function).visit(function)
    assert isinstance(made, ast.FunctionDef)
    return made


class _Rewriter(ast.NodeTransformer):
    def __init__(self, function: ast.FunctionDef) -> None:
        self.count = 0
        self.function = function
        given = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
        self.hides = bool({"isinstance", "len"} & (given | stored(function.body).keys()))

    def visit_Match(self, node: ast.Match) -> ast.AST | list[ast.stmt]:
        subject = ast.Name(f"dlc__matched{self.count}", ast.Load())
        try:
            found = [_asked(case.pattern, subject, _is_tuple(node.subject)) for case in node.cases]
        except _Stays:
            found = []
        if not found or self.hides or self._seen_elsewhere(node, found):
            self.generic_visit(node)
            return node
        self.count += 1
        self.generic_visit(node)
        start = ast.Assign([ast.Name(subject.id, ast.Store())], node.subject)
        made = [start, *_conditions(node.cases, found)]
        return [ast.fix_missing_locations(ast.copy_location(s, node)) for s in made]

    def _seen_elsewhere(self, node: ast.Match, found: Sequence[_Found]) -> bool:
        """Whether a name that a case with a guard binds, also where the guard does not hold, is read where nothing else binds it."""
        for case, of in zip(node.cases, found, strict=True):
            for name in of.names if case.guard is not None else ():
                binding = [c for c, other in zip(node.cases, found, strict=True) if name in other.names]
                if _reads(self.function, name) != sum(_reads(c, name) for c in binding):
                    return True
        return False


def _reads(node: ast.AST, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(node))


def _is_tuple(subject: ast.expr) -> bool:
    match subject:
        case ast.Tuple(elements):
            return not any(isinstance(e, ast.Starred) for e in elements)
        case ast.Attribute(_, "shape") | ast.Call(ast.Name("tuple")) | ast.Call(ast.Attribute(_, "size"), []):
            return True
        case _:
            return False


def _conditions(cases: Sequence[ast.match_case], found: Sequence[_Found]) -> list[ast.stmt]:
    if not cases:
        return []
    case, of = cases[0], found[0]
    named = [ast.copy_location(ast.Assign([ast.Name(n, ast.Store())], e), case.pattern) for n, e in of.names.items()]
    tests = [*of.tests, *([] if case.guard is None else [_Renamed(of.names).visit(case.guard)])]
    body = [*named, *case.body]
    if not tests:
        return body
    return [ast.copy_location(ast.If(ast.copy_location(_both(tests), case.pattern), body, _conditions(cases[1:], found[1:])), case.pattern)]


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: dict[str, ast.expr]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self.names[node.id]) if node.id in self.names else node


def _asked(p: ast.pattern, subject: ast.expr, is_tuple: bool = False) -> _Found:
    match p:
        case ast.MatchValue(value):
            return _Found([ast.Compare(subject, [ast.Eq()], [value])])
        case ast.MatchSingleton(value):
            return _Found([ast.Compare(subject, [ast.Is()], [ast.Constant(value)])])
        case ast.MatchAs(inner, name):
            found = _Found() if inner is None else _asked(inner, subject, is_tuple)
            return _Found(found.tests, found.names | ({} if name is None else {name: subject}))
        case ast.MatchOr(patterns):
            return _one_of([_asked(inner, subject, is_tuple) for inner in patterns])
        case ast.MatchClass(cls, parts, [], []) if not parts or len(parts) == 1 and isinstance(cls, ast.Name) and cls.id in _WHOLE:
            return _all([_Found([_call("isinstance", subject, cls)]), *(_asked(inner, subject) for inner in parts)])
        case ast.MatchSequence(patterns) if is_tuple and not any(isinstance(q, ast.MatchStar) for q in patterns):
            size = ast.Compare(_call("len", subject), [ast.Eq()], [ast.Constant(len(patterns))])
            elements = [ast.Subscript(subject, ast.Constant(n), ast.Load()) for n in range(len(patterns))]
            return _all([_Found([size]), *(_asked(q, e) for q, e in zip(patterns, elements, strict=True))])
        case _:
            raise _Stays


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(function, ast.Load()), list(args), [])


def _all(found: Sequence[_Found]) -> _Found:
    return _Found([t for f in found for t in f.tests], {n: e for f in found for n, e in f.names.items()})


def _one_of(found: Sequence[_Found]) -> _Found:
    if any(f.names for f in found):
        raise _Stays
    if not all(f.tests for f in found):
        return _Found()
    return _Found([ast.BoolOp(ast.Or(), [_both(f.tests) for f in found])])


def _both(tests: list[ast.expr]) -> ast.expr:
    return tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests)


def classes_of(node: ast.Match) -> Iterator[ast.expr]:
    """The classes that its patterns ask for."""
    return (n.cls for case in node.cases for n in ast.walk(case.pattern) if isinstance(n, ast.MatchClass))


__all__ = ["classes_of", "without_match"]
