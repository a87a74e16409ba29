"""Which variables a block of Python stores and loads, and which are live after each statement.

Backward analysis over structured code without `break`, `continue` and early `return` (`python_exits` has removed them). What
a nested function or lambda reads, and what is global or nonlocal, is always live.

Source: Aho, Lam, Sethi, Ullman, Compilers, section 9.2.5 (live-variable analysis); Chen et al., DyCL (ISSTA 2023), 4.2.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from dlc.frontend.python_notes import Notes

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def stored(nodes: Iterable[ast.AST]) -> dict[str, None]:
    """Names that `nodes` bind in their own scope, in order; those of `except ... as` are unbound again and left out."""
    names: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                names[name] = None
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names[name] = None
                return
            case ast.Lambda():
                return
            case ast.Import() | ast.ImportFrom():
                names.update(dict.fromkeys((a.asname or a.name.partition(".")[0]) for a in node.names))
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names[name] = None
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                for inner in ast.walk(node):  # a walrus binds outside, a comprehension's targets do not
                    if isinstance(inner, ast.NamedExpr) and isinstance(inner.target, ast.Name):
                        names[inner.target.id] = None
                return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in nodes:
        visit(node)
    return names


def loaded(node: ast.AST | None) -> set[str]:
    """Names that `node` reads, in nested scopes too."""
    if node is None:
        return set()
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def captured(body: Sequence[ast.stmt]) -> set[str]:
    """Names that functions defined inside read, or that are shared with other scopes."""
    names: set[str] = set()
    for s in body:
        for node in ast.walk(s):
            if isinstance(node, _SCOPES):
                names |= loaded(node)
            elif isinstance(node, (ast.Global, ast.Nonlocal)):
                names |= set(node.names)
    return names


class Liveness:
    """Notes of every branch and loop the names whose values matter after it."""

    def __init__(self, always: set[str], notes: Notes) -> None:
        self.always, self.notes = always, notes

    def block(self, statements: Sequence[ast.stmt], after: set[str]) -> set[str]:
        live = set(after)
        for s in reversed(statements):
            live = self.statement(s, live)
        return live

    def statement(self, s: ast.stmt, after: set[str]) -> set[str]:
        match s:
            case ast.If():
                self.notes.branches[s].live = after | self.always
                return loaded(s.test) | self.block(s.body, after) | self.block(s.orelse, after)
            case ast.While() | ast.For():
                return self.loop(s, after)
            case ast.With():
                inside = self.block(s.body, after)
                return inside | {n for item in s.items for n in loaded(item)}
            case ast.Try() | ast.TryStar():
                # An exception may end any part at any place: nothing is dead inside.
                everything = after | loaded(s)
                for part in (s.body, s.orelse, s.finalbody, *(h.body for h in s.handlers)):
                    self.block(part, everything)
                return everything
            case ast.Match():
                parts = [self.block(c.body, after) for c in s.cases]
                return after | set().union(*parts) | loaded(s)
            case ast.FunctionDef() | ast.ClassDef():
                return after | loaded(s)
            case ast.Return():
                return loaded(s)
            case ast.AugAssign(target=ast.Name(id=name)):
                return after | loaded(s.value) | {name}
            case _:
                plain = isinstance(s, (ast.Assign, ast.AnnAssign))
                gone = set(stored([s])) if plain else set()
                return (after - gone) | loaded(s)

    def loop(self, s: ast.While | ast.For, after: set[str]) -> set[str]:
        read = loaded(s.test) if isinstance(s, ast.While) else set()
        note = self.notes.loops[s]
        head = after | read | set(note.flags)
        while True:
            inside = self.block(s.body, head)
            if isinstance(s, ast.For):
                inside -= set(stored([s.target]))
            if inside <= head:
                break
            head |= inside
        note.live = head | self.always
        note.after = after | self.always
        return head | (loaded(s.iter) if isinstance(s, ast.For) else set())
