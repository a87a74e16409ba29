"""Statements of random dynamic programs that use more of Python than branches and tensors: objects, containers, exceptions, libraries.

Each piece writes a few lines that decide on data and hand what they decided on to the program's variables. Mostly they are of
forms that compile; a few are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEADER = '''"""A random program."""

import bisect
import heapq
from collections import Counter, OrderedDict, defaultdict, deque

import torch
from torch import nn

CALLS = 0


def called():
    global CALLS
    CALLS += 1


class Box:
    """Any attributes."""

'''
VECTOR, FLOAT, INT = "vector", "float", "int"
Piece = Callable[[Any, Any, int], None]
PIECES: dict[str, Piece] = {}


def piece(tag: str) -> Callable[[Piece], Piece]:
    def register(write: Piece) -> Piece:
        PIECES[tag] = write
        return write

    return register


def write_piece(w: Any, s: Any, indent: int) -> bool:
    """One of the pieces, and what it is called among the tags."""
    tag = w.rng.choice(list(PIECES))
    w.tags.add(tag)
    PIECES[tag](w, s, indent)
    return True


def _when(w: Any, s: Any, indent: int, *lines: str) -> None:
    """Lines on one path."""
    w.emit(indent, f"if {w.condition(s, 0)}:")
    for line in lines:
        w.emit(indent + 1, line)


def _given(w: Any, s: Any, indent: int, kind: str, value: str) -> None:
    """A new variable."""
    name = w.name(kind)
    w.emit(indent, f"{name} = {value}")
    s.of(kind).append(name)


def _new(w: Any, letter: str) -> str:
    w.made += 1
    return f"{letter}{w.made}"


@piece("attribute:by-name")
def attribute(w: Any, s: Any, indent: int) -> None:
    o = _new(w, "o")
    w.emit(indent, f"{o} = Box()")
    w.emit(indent, f"setattr({o}, 'a', {w.vector(s, 1)})")
    _when(w, s, indent, f"setattr({o}, 'a', {w.vector(s, 1)})")
    read = w.pick(f"getattr({o}, 'a')", f"vars({o})['a']", f"{o}.a", f"getattr({o}, 'b', {o}.a)")
    _given(w, s, indent, VECTOR, f"({read} if hasattr({o}, 'a') else {w.vector(s, 1)}) * 0.5")


@piece("attribute:of-self")
def attribute_of_self(w: Any, s: Any, indent: int) -> None:
    name = _new(w, "kept")
    w.emit(indent, f"self.{name} = {w.vector(s, 1)}")
    _when(w, s, indent, f"self.{name} = self.{name} * 0.5 + {w.number()}")
    _given(w, s, indent, VECTOR, f"self.{name} if hasattr(self, '{name}') else {w.vector(s, 1)}")


@piece("container:deque")
def double_ended(w: Any, s: Any, indent: int) -> None:
    q = _new(w, "q")
    w.emit(indent, f"{q} = deque([{w.vector(s, 1)}, {w.vector(s, 1)}], maxlen=2)")
    name = w.name(VECTOR)
    w.emit(indent, f"{name} = {w.vector(s, 1)}")
    _when(w, s, indent, f"{name} = {q}[{w.pick(0, 1, -1)}] * 0.5")
    s.of(VECTOR).append(name)
    w.emit(indent, w.pick(f"{q}.append({name})", f"{q}.appendleft({name})", f"{q}[0] = {name}", f"{q}.rotate(1)"))
    _given(w, s, indent, VECTOR, f"{q}[{w.pick(0, 1, -1)}] * 0.5")


@piece("container:counter")
def counter(w: Any, s: Any, indent: int) -> None:
    c = _new(w, "c")
    made = w.pick("Counter('ppq')", "defaultdict(int, p=2)", "defaultdict(lambda: 1)", "OrderedDict(p=1, q=3)")
    w.emit(indent, f"{c} = {made}")
    if "lambda" in made:
        w.emit(indent, f"{c}['p'] += 1")
    _when(w, s, indent, f"{c}['p'] += {w.rng.randint(1, 3)}")
    _given(w, s, indent, INT, f"{c}['p'] % 5")


@piece("container:ordered")
def ordered(w: Any, s: Any, indent: int) -> None:
    d = _new(w, "d")
    w.emit(indent, f"{d} = OrderedDict(p={w.vector(s, 1)}, q={w.vector(s, 1)})")
    _when(w, s, indent, w.pick(f"{d}['p'] = {w.vector(s, 1)}", f"{d}.update(q={w.vector(s, 1)})", f"{d}['q'] = {d}['p'] * 0.5"))
    _given(w, s, indent, VECTOR, w.pick(f"{d}['q'] * 0.5", f"sum({d}.values()) * 0.5", f"next(iter({d}.values()))"))


@piece("iterator")
def iterator(w: Any, s: Any, indent: int) -> None:
    it, name = _new(w, "it"), w.name(VECTOR)
    w.emit(indent, f"{it} = iter(({w.vector(s, 1)}, {w.vector(s, 1)}))")
    w.emit(indent, f"{name} = next({it})")
    inner = _new(w, "it")
    _when(w, s, indent, f"{inner} = iter([{name} * 0.5, {w.vector(s, 1)}])", f"{name} = next({inner}) + 0.25 * next({inner})")
    w.emit(indent, f"{name} = {name} * 0.5 + 0.25 * next({it}, {name})")
    s.of(VECTOR).append(name)


@piece("try")
def exception(w: Any, s: Any, indent: int) -> None:
    name = w.name(VECTOR)
    fails = w.pick(("{'p': 1}['r']", "KeyError"), ("[1, 2][5]", "IndexError"), ("1 // 0", "ZeroDivisionError"), ("1 // 2", "ArithmeticError"))
    w.emit(indent, f"{name} = {w.vector(s, 1)}")
    _when(
        w, s, indent, "try:", f"    {name} = {name} * ({fails[0]} + 1)", f"except {fails[1]}:", f"    {name} = {w.vector(s, 1)}"
    )  # fmt: skip
    s.of(VECTOR).append(name)


@piece("library:heapq")
def heap(w: Any, s: Any, indent: int) -> None:
    h = _new(w, "h")
    w.emit(indent, f"{h} = [0.25, 0.75, 0.5]")
    w.emit(indent, w.pick(f"heapq.heapify({h})", f"heapq.heappush({h}, 0.125)", f"{h}.sort()"))
    _when(w, s, indent, w.pick(f"heapq.heapreplace({h}, 0.875)", f"heapq.heappushpop({h}, {w.number()})", f"{h}.reverse()"))
    _given(w, s, indent, FLOAT, f"{h}[0] * 0.5")


@piece("library:bisect")
def sorted_list(w: Any, s: Any, indent: int) -> None:
    h = _new(w, "h")
    w.emit(indent, f"{h} = [0.25, 0.5, 0.75]")
    w.emit(indent, f"bisect.insort({h}, {w.number()})")
    i = _new(w, "i")
    w.emit(indent, f"{i} = bisect.bisect({h}, 0.5)")
    _when(w, s, indent, f"{i} = bisect.bisect_left({h}, {w.number()}) % 5")
    s.of(INT).append(i)


@piece("size")
def size(w: Any, s: Any, indent: int) -> None:
    name = w.name(VECTOR)
    w.emit(indent, f"{name} = {w.vector(s, 1)}")
    test = w.pick("y.shape[0] > 3", "y.shape[0] == 1", "len(y) < 4", "y.size(0) % 2 == 0", "x.shape[0] > 3", "y.numel() >= 12")
    w.emit(indent, f"if {test}{w.pick('', f' and {w.condition(s, 0)}')}:")
    w.emit(indent + 1, f"{name} = {name} * 0.5 + {w.pick(w.vector(s, 1), 'y.sum(0) / y.shape[0]', 'y[-1]')}")
    s.of(VECTOR).append(name)


@piece("counter:unread")
def unread_counter(w: Any, s: Any, indent: int) -> None:
    if w.in_helper:
        w.assign(s, indent)
        return
    _when(w, s, indent, w.pick("Net.calls += 1", "self.seen += 1", "called()", "self.log.append(1)"))


def recursive_helper(w: Any, s: Any, name: str) -> None:
    """A method that calls itself, as often as a number says that is known."""
    w.emit(1, f"def {name}(self, a, c, n={w.rng.randint(1, 2)}):")
    w.emit(2, "if n == 0:")
    w.emit(3, f"return {w.vector(s, 1)} * c")
    w.emit(2, f"if {w.condition(s, 0).replace('k ', 'a.argmax() ')}:")
    w.emit(3, f"return torch.tanh(self.{name}({w.vector(s, 1)}, c, n - 1))")
    w.emit(2, f"return 0.5 * self.{name}(a, c, n - 1) + {w.vector(s, 1)} * 0.25")
    w.emit(0, "")
