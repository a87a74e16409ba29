"""`return`, `break` and `continue` inside control flow, as assignments to flags and conditions on them.

    for s in stages:                          did = False
        x = s(x)                              for s in stages:            # stops once `did`
        if sure(x):                 ->            x = s(x)
            return x                              if sure(x):
    return last(x)                                    ret, did = x, True
                                              if not did:
                                                  ret, did = last(x), True
                                              return ret

What follows an `if` whose one arm always leaves moves into the other arm, so that the decision is made once; only after an
arm that may or may not leave is the rest guarded by the flags. After this every region has one entry and one exit.

Source: Moldovan et al., AutoGraph (SysML 2019, arXiv 1810.08061), section 7; Erosa and Hendren, Taming Control Flow
(ICCL 1994).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dlc.frontend.python_notes import Notes

Statement = TypeVar("Statement", bound=ast.stmt)

RETURN, DONE = "dlc__ret", "dlc__did"
"""The value to return, and whether the function has returned."""


@dataclass(frozen=True)
class Outcome:
    """How a block ends: flags it may have set, and whether control may reach what follows."""

    flags: frozenset[str] = frozenset()
    falls: bool = True


_FALLS = Outcome()


def lower_exits(function: ast.FunctionDef, notes: Notes) -> None:
    """Rewrite the body of `function` in place, and note of each branch and loop how it ends."""
    exits = _Exits(notes)
    if not _leaves_early(function.body):
        final = function.body[-1:] if isinstance(function.body[-1], ast.Return) else []
        function.body = [*exits.block(function.body[: len(function.body) - len(final)])[0], *final]
        return
    end = ast.copy_location(ast.Return(ast.Constant(None)), function.body[-1])
    body, _ = exits.block([*function.body, end])
    first, last = function.body[0], function.body[-1]
    start: list[ast.stmt] = [
        ast.copy_location(_assign(RETURN, _name("dlc__dead")), first),
        ast.copy_location(_assign(DONE, ast.Constant(False)), first),
    ]
    function.body = [*start, *body, ast.copy_location(ast.Return(_name(RETURN)), last)]
    ast.fix_missing_locations(function)


def _leaves_early(body: Sequence[ast.stmt]) -> bool:
    """Whether some return is not the last statement of the function."""
    returns = [n for s in body for n in _own_nodes(s) if isinstance(n, ast.Return)]
    return any(r is not body[-1] for r in returns)


def _own_nodes(node: ast.AST) -> list[ast.AST]:
    """The nodes under `node`, nested functions and classes left out."""
    found = [node]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return found
    for child in ast.iter_child_nodes(node):
        found += _own_nodes(child)
    return found


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def none_of(flags: frozenset[str]) -> ast.expr:
    """The test that no flag is set."""
    names = [_name(f) for f in sorted(flags)]
    return ast.UnaryOp(ast.Not(), names[0] if len(names) == 1 else ast.BoolOp(ast.Or(), names))


class _Exits:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.loops: list[int] = []
        self._ends: dict[tuple[int, ...], Outcome] = {}
        self.count = 0

    def block(self, statements: Sequence[ast.stmt]) -> tuple[list[ast.stmt], Outcome]:
        out: list[ast.stmt] = []
        for at, s in enumerate(statements):
            rest = statements[at + 1 :]
            match s:
                case ast.Return():
                    return [*out, *self.returned(s)], Outcome(frozenset((DONE,)), False)
                case ast.Break() | ast.Continue():
                    flag = f"dlc__{'brk' if isinstance(s, ast.Break) else 'cnt'}{self.loops[-1]}"
                    return [*out, _at(_assign(flag, ast.Constant(True)), s)], Outcome(frozenset((flag,)), False)
                case ast.Raise():
                    return [*out, s], Outcome(falls=False)
                case ast.If():
                    made, outcome = self.if_(s, rest)
                    out += made
                    if outcome is not None:
                        return out, outcome
                case ast.For() | ast.While():
                    endless = _endless(s) and "Break" not in self.ends(s.body).flags
                    rest, flags = self.loop(s, out, rest)
                    if endless:  # nothing after it is reached
                        return out, Outcome(flags, False)
                    if DONE in flags:
                        made, outcome = self.guarded(out, frozenset((DONE,)), rest, s)
                        if made[-1] is not s:
                            self.notes.branches[made[-1]].behind = s
                            self.notes.loops[s].followed = True
                        return made, outcome
                    after, outcome = self.block(rest)
                    return [*out, *after], outcome
                case ast.With() | ast.Try() | ast.TryStar() | ast.Match():
                    outcome = self.compound(s)
                    out.append(s)
                    if outcome.flags:
                        if not outcome.falls:
                            return out, outcome
                        return self.guarded(out, outcome.flags, rest, s)
                case _:
                    out.append(s)
        return out, _FALLS

    def returned(self, s: ast.Return) -> list[ast.stmt]:
        value = s.value if s.value is not None else ast.Constant(None)
        return [_at(_assign(RETURN, value), s), _at(_assign(DONE, ast.Constant(True)), s)]

    def guarded(
        self, out: list[ast.stmt], flags: frozenset[str], rest: Sequence[ast.stmt], s: ast.stmt
    ) -> tuple[list[ast.stmt], Outcome]:
        """`rest` where none of `flags` is set."""
        if not rest:
            return out, Outcome(flags)
        body, outcome = self.block(rest)
        guard = _at(ast.If(none_of(flags), body, []), s)
        self._mark(guard, outcome, Outcome(flags, False))
        return [*out, guard], Outcome(flags | outcome.flags, outcome.falls)

    def if_(self, s: ast.If, rest: Sequence[ast.stmt]) -> tuple[list[ast.stmt], Outcome | None]:
        """The statement, with what follows moved inside where it must be; None where the block goes on."""
        ends, body, orelse = (self.ends(s.body), self.ends(s.orelse)), s.body, s.orelse
        if rest and ends[0].falls != ends[1].falls and ends[0].flags | ends[1].flags:
            body, orelse = (body, [*orelse, *rest]) if ends[1].falls else ([*body, *rest], orelse)
            rest = ()
        then, a = self.block(body)
        other, b = self.block(orelse)
        flags = a.flags | b.flags
        made = _at(ast.If(s.test, then or [_at(ast.Pass(), s)], other), s)
        self._mark(made, a, b)
        if not flags:
            return [made], None if a.falls or b.falls else Outcome(falls=False)
        if not rest or not (a.falls or b.falls):
            return [made], Outcome(flags, a.falls or b.falls)
        return self.guarded([made], flags, rest, s)

    def ends(self, statements: Sequence[ast.stmt]) -> Outcome:
        """How a block ends, without lowering it; flags are kinds of statements here."""
        key = tuple(map(id, statements))
        found = self._ends.get(key)
        if found is None:
            found = self._ends[key] = self._find_ends(statements)
        return found

    def _find_ends(self, statements: Sequence[ast.stmt]) -> Outcome:
        flags: frozenset[str] = frozenset()
        for s in statements:
            match s:
                case ast.Return() | ast.Break() | ast.Continue():
                    return Outcome(flags | {type(s).__name__}, False)
                case ast.Raise():
                    return Outcome(flags, False)
                case ast.If():
                    outcome = _either([self.ends(s.body), self.ends(s.orelse)])
                case ast.For() | ast.While():
                    inside = self.ends(s.body).flags
                    falls = not _endless(s) or "Break" in inside
                    outcome = Outcome(inside & {"Return"} | self.ends(s.orelse).flags, falls)
                case ast.With():
                    outcome = self.ends(s.body)
                case ast.Match():
                    outcome = _either([_FALLS, *(self.ends(c.body) for c in s.cases)])
                case ast.Try() | ast.TryStar():
                    parts = [s.body, *([s.orelse] if s.orelse else []), *(h.body for h in s.handlers)]
                    outcome = _either([self.ends(p) for p in (*parts, *([s.finalbody] if s.finalbody else []))])
                case _:
                    continue
            flags |= outcome.flags
            if not outcome.falls:
                return Outcome(flags, False)
        return Outcome(flags)

    def loop(
        self, s: ast.For | ast.While, out: list[ast.stmt], rest: Sequence[ast.stmt]
    ) -> tuple[Sequence[ast.stmt], frozenset[str]]:
        """Append the loop to `out`; what follows it (its `else` included), and the flags that end it."""
        self.count += 1
        own = self.count
        self.loops.append(own)
        body, outcome = self.block(s.body)
        self.loops.pop()
        brk, cnt = f"dlc__brk{own}", f"dlc__cnt{own}"
        if cnt in outcome.flags:
            body = [_at(_assign(cnt, ast.Constant(False)), s), *body]
        if brk in outcome.flags:
            out.append(_at(_assign(brk, ast.Constant(False)), s))
        flags = outcome.flags - {cnt}
        self.notes.loops[s].flags = tuple(sorted(flags))
        orelse, s.body, s.orelse = s.orelse, body, []
        out.append(s)
        if not orelse:
            return rest, flags
        if brk not in flags:
            return [*orelse, *rest], flags
        return [_at(ast.If(none_of(frozenset((brk,))), orelse, []), s), *rest], flags

    def _mark(self, s: ast.stmt, then: Outcome, orelse: Outcome) -> None:
        self.notes.branches[s].returns = (_returns(then), _returns(orelse))

    def compound(self, s: ast.With | ast.Try | ast.TryStar | ast.Match) -> Outcome:
        """Blocks that always run where they stand."""
        if isinstance(s, ast.With):
            s.body, outcome = self.block(s.body)
            return outcome
        if isinstance(s, ast.Match):
            outcomes = [_FALLS]
            for case in s.cases:
                case.body, outcome = self.block(case.body)
                outcomes.append(outcome)
            return _either(outcomes)
        s.body, first = self.block(s.body)
        outcomes = [first]
        if s.orelse:
            s.orelse, outcome = self.block(s.orelse)
            if first.flags:
                guard = _at(ast.If(none_of(first.flags), s.orelse, []), s)
                self._mark(guard, outcome, _FALLS)
                s.orelse = [guard]
            outcomes.append(outcome)
        for handler in s.handlers:
            handler.body, outcome = self.block(handler.body)
            outcomes.append(outcome)
        if s.finalbody:
            s.finalbody, outcome = self.block(s.finalbody)
            outcomes.append(outcome)
        return _either(outcomes)


def _endless(s: ast.stmt) -> bool:
    """Whether this is `while True`."""
    return isinstance(s, ast.While) and isinstance(s.test, ast.Constant) and bool(s.test.value)


def _either(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(frozenset().union(*(o.flags for o in outcomes)), any(o.falls for o in outcomes))


def _returns(o: Outcome) -> bool:
    return not o.falls and o.flags == {DONE}


def _at(s: Statement, where: ast.stmt) -> Statement:
    return ast.fix_missing_locations(ast.copy_location(s, where))
