"""A Python function with its control flow, calls and writes handed to a runtime that may record them instead of doing them.

    if ok(x):                     b = rt.branch(site, rt.call(ok, x), (y,))
        y = f(x)                  if b.then():
    else:                 ->          y = rt.call(f, x); (y,) = b.close((y,))
        y = g(x)                  if b.orelse():
                                      y = rt.call(g, x); (y,) = b.close((y,))
                                  (y,) = b.result()

The statements stay in their function, with their lines: no nested functions are made of blocks, so that `super`, `nonlocal`
and closures work as they did, and tracebacks name the user's lines. The runtime (`torch_flow`) decides which blocks run:
one arm where the condition is known, both where it is data.

Source: Moldovan et al., AutoGraph (SysML 2019, arXiv 1810.08061); Chen et al., DyCL (ISSTA 2023), section 4.1.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dlc.frontend.python_comprehensions import items_of_comprehension, list_loop, short_loop
from dlc.frontend.python_exits import lower_exits
from dlc.frontend.python_match import classes_of, without_match
from dlc.frontend.python_names import Liveness, captured, stored
from dlc.frontend.python_notes import Notes
from dlc.frontend.python_source import NotRewritable, find_definition, is_generator
from dlc.frontend.python_syntax import (
    DEAD_NAME,
    OPERATORS,
    RUNTIME,
    SITES,
    binds,
    cell,
    fill_locations,
    is_docstring,
    later,
    load,
    method,
    nonlocals,
    plain_target,
    rt,
    state,
    store,
    taken_apart,
    unpack,
)
from dlc.frontend.python_walrus import without_walrus_on_the_right

_MADE = "dlc__made"
_FOLDS = frozenset("sum any all list tuple max min sorted".split())
"""Functions that need all items of a generator at once."""
_NATIVE = frozenset("super locals globals vars eval exec dir".split())
"""Calls that look at the caller's frame."""


_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True)
class Site:
    """A place where control may depend on data.

    Attributes:
        file, line: where it is.
        names: the variables its blocks store, as they are passed in and out.
        live: which of them matter afterwards.
        returns: for an `if`, which arms always return from the function.
        flags: for a loop, positions in `names` of the flags that end it.
        after: for a loop, which of `names` matter after it (`live` are those that matter to its next step, too).
        followed: for a loop, whether what comes next is done only where it has not returned from the function.
    """

    file: str
    line: int
    names: tuple[str, ...] = ()
    live: frozenset[str] = frozenset()
    returns: tuple[bool, bool] = (False, False)
    flags: tuple[int, ...] = ()
    after: frozenset[str] = frozenset()
    followed: bool = False


def rewrite(function: types.FunctionType, runtime: Any, dead: Any) -> tuple[types.FunctionType, set[types.CodeType]]:
    """`function` over `runtime`, and the code objects it consists of (nested functions included).

    Raises:
        NotRewritable: there is no source, or it is a coroutine.
    """
    node, owner = find_definition(function.__code__, function.__globals__)
    if isinstance(node, ast.AsyncFunctionDef):
        raise NotRewritable("it is a coroutine")
    file = function.__code__.co_filename
    sites: list[Site] = []
    if isinstance(node, ast.Lambda):
        body: list[ast.stmt] = [ast.copy_location(ast.Return(node.body), node.body)]
        node = ast.copy_location(ast.FunctionDef("lambda_", node.args, body, [], None), node)
    node = without_walrus_on_the_right(without_match(node))
    made = _rewriter(node)(file, sites, owner).function(node)
    made.args = _no_defaults(made.args)
    made.decorator_list = []
    code = _compile(made, function.__code__, file)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    own = {RUNTIME: runtime, SITES: tuple(sites), DEAD_NAME: dead}
    cells.update({name: types.CellType(value) for name, value in own.items()})
    closure = tuple(cells[name] for name in code.co_freevars)
    new = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__qualname__ = function.__qualname__
    new.__module__ = function.__module__
    return new, set(_codes(code))


def _compile(made: ast.FunctionDef, original: types.CodeType, file: str) -> types.CodeType:
    """The code of `made`, with the original's free variables (and ours) free."""
    made.name = _MADE  # no other name: what the function calls by its own may be a global, itself or not
    outer = [RUNTIME, SITES, DEAD_NAME, *original.co_freevars]
    inner = ast.arguments([], [ast.arg(n) for n in outer], None, [], [], None, [])
    factory = ast.FunctionDef("dlc__factory", inner, [made], [], None)
    module = ast.fix_missing_locations(ast.Module([factory], []))
    for node in ast.walk(module):
        node.__dict__.pop("type_params", None)
    whole = compile(module, file, "exec", dont_inherit=True, flags=_future(original))
    maker = next(c for c in whole.co_consts if isinstance(c, types.CodeType))
    code = next(c for c in maker.co_consts if isinstance(c, types.CodeType) and c.co_name == _MADE)
    return code.replace(co_name=original.co_name)


def _future(code: types.CodeType) -> int:
    import __future__

    return code.co_flags & __future__.annotations.compiler_flag


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code objects of a function, but not of coroutines and classes inside: these stay as they are."""
    yield code
    for c in code.co_consts:
        if not isinstance(c, types.CodeType) or not c.co_flags & inspect.CO_OPTIMIZED:  # the body of a class
            continue
        if c.co_name.startswith("<") or not c.co_flags & _ASYNCHRONOUS:
            yield from _codes(c)


def _no_defaults(args: ast.arguments) -> ast.arguments:
    """Defaults are taken from the function; in the code only their number counts, and not even that."""
    args.defaults = []
    args.kw_defaults = [None] * len(args.kwonlyargs)
    for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
        if a is not None:
            a.annotation = None
    return args


# --- rewriting -------------------------------------------------------------------------------------------------------


class _Function(ast.NodeTransformer):
    """Rewrites one function's own scope; nested functions get their own."""

    def __init__(self, file: str, sites: list[Site], owner: str | None) -> None:
        self.file = file
        self.sites = sites
        self.owner = owner
        self.notes = Notes()
        self.unsure: set[str] = set()
        self.nonlocals: set[str] = set()
        self.locals: set[str] = set()
        self.outer: set[str] = set()  # variables of the function around that may depend on the path
        self.hoisted: list[ast.stmt] | None = None  # functions that the statement being rewritten needs
        self.first: str | None = None
        self.count = 0

    # --- functions ---

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        parameters = {
            a.arg
            for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
            if a is not None
        }
        positional = (*node.args.posonlyargs, *node.args.args)
        self.first = positional[0].arg if positional else None
        self.nonlocals = nonlocals(node.body)
        self.globals = {n for s in node.body for g in ast.walk(s) if isinstance(g, ast.Global) for n in g.names}
        self.unsure = self.prepared(node) - parameters
        self.locals = (parameters | set(stored(node.body))) - {self.first if self.first == "self" else None}
        body: list[ast.stmt] = []
        for s in node.body:
            body += self.statements(s)
        start = [
            ast.copy_location(store(n, rt("undefined", ast.Constant(n))), node.body[0]) for n in sorted(self.unsure)
        ]
        inner = {n for s in node.body for g in ast.walk(s) if isinstance(g, ast.Nonlocal) for n in g.names}
        for n in sorted((inner & (parameters | set(stored(node.body)))) - self.nonlocals):
            start.append(ast.copy_location(ast.Expr(rt("born", cell(n))), node.body[0]))
        at = 1 if is_docstring(node.body[0]) else 0
        node.body = [*body[:at], *start, *body[at:]]
        node.returns = None
        return node

    def prepared(self, node: ast.FunctionDef) -> set[str]:
        """Get the statements ready; the variables that branches and loops of this function store."""
        shared = {n for s in node.body for g in ast.walk(s) if isinstance(g, (ast.Global, ast.Nonlocal)) for n in g.names}
        lower_exits(node, self.notes)
        Liveness(captured(node.body), self.notes).block(node.body, set())
        return set(_state_names(node.body)) - shared

    def statements(self, s: ast.stmt) -> list[ast.stmt]:
        names = () if isinstance(s, _COMPOUND) else sorted(stored([s]))
        touched = self.touched(names)
        around, self.hoisted = self.hoisted, []
        made = self.visit(s)
        before, self.hoisted = self.hoisted, around
        found: list[ast.stmt] = made if isinstance(made, list) else [made]
        found = [*before, *touched, *found]
        for m in found:
            ast.copy_location(m, s)
            fill_locations(m, s)
        return found

    def touched(self, names: Iterable[str]) -> list[ast.stmt]:
        """What journals variables of functions and files around, before they are stored."""
        found = [rt("touch_cell", cell(n)) for n in names if n in self.nonlocals]
        return [ast.Expr(e) for e in (*found, *(rt("touch_global", ast.Constant(n)) for n in names if n in self.globals))]

    def block(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        return [m for s in body for m in self.statements(s)]

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"dlc__{kind}{self.count}"

    def own(self, names: Iterable[str]) -> list[str]:
        """Without the variables of functions and files around, whose changes are journalled (`touch_cell`, `touch_global`)."""
        return [n for n in names if n not in self.nonlocals | self.globals]

    def site(self, node: ast.AST, names: Sequence[str] = (), live: set[str] | None = None, **more: Any) -> ast.expr:
        kept = frozenset(n for n in names if live is None or n in live)
        self.sites.append(Site(self.file, getattr(node, "lineno", 0), tuple(names), kept, **more))
        return ast.Subscript(load(SITES), ast.Constant(len(self.sites) - 1), ast.Load())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        node.args.defaults = [self.visit(d) for d in node.args.defaults]
        node.args.kw_defaults = [d and self.visit(d) for d in node.args.kw_defaults]
        return _rewriter(node)(self.file, self.sites, self.owner).function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        made = ast.Expr(rt("new_class", load(node.name)))
        return ast.With([ast.withitem(rt("aside"))], [node, made])

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        node.args.defaults = [self.visit(d) for d in node.args.defaults]
        node.body = self.within(node.body)
        return node

    def within(self, e: ast.expr) -> ast.expr:
        """An expression with variables of its own: what it needs cannot be put before the statement."""
        around, self.hoisted = self.hoisted, None
        made: ast.expr = self.visit(e)
        self.hoisted = around
        return made

    # --- control ---

    def visit_If(self, node: ast.If) -> list[ast.stmt]:
        names = self.own(stored([*node.body, *node.orelse]))
        note = self.notes.branches[node]
        loop = None if note.behind is None else self.notes.loops[note.behind]
        if loop is not None:
            names = list(dict.fromkeys([*loop.names, *names]))
        site = self.site(node, names, note.live, returns=note.returns)
        b = self.fresh("b")
        close = unpack(names, method(b, "close", state(names)))
        opened = ("branch", site) if loop is None else ("behind", site, load(loop.name))
        made: list[ast.stmt] = [store(b, rt(*opened, self.test(node.test), state(names)))]
        made.append(ast.If(method(b, "then"), [*self.block(node.body), close], []))
        made.append(ast.If(method(b, "orelse"), [*self.block(node.orelse), close], []))
        made.append(unpack(names, method(b, "result")))
        return made

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        test = ast.If(
            method("{}", "testing"), [ast.Expr(method("{}", "tested", self.test(node.test)))], []
        )  # the loop's name is filled in below
        return self.loop(node, ast.Constant(None), [test], [])

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        take = ast.Assign([node.target], ast.Constant(None))
        return self.loop(node, self.visit(node.iter), [], [take])

    def loop(
        self, node: ast.While | ast.For, over: ast.expr, test: list[ast.stmt], take: list[ast.stmt]
    ) -> list[ast.stmt]:
        targets = [node.target] if isinstance(node, ast.For) else [node.test]
        names = self.own(stored([*targets, *node.body]))
        note = self.notes.loops[node]
        names += [f for f in note.flags if f not in names]
        after = frozenset(names if note.after is None else note.after.intersection(names))
        places = tuple(names.index(f) for f in note.flags)
        site = self.site(node, names, note.live, flags=places, after=after, followed=note.followed)
        w = self.fresh("w")
        note.names, note.name = tuple(names), w
        error = self.fresh("e")
        for t in test:
            for inner in ast.walk(t):
                if isinstance(inner, ast.Name) and inner.id == "{}":
                    inner.id = w
        body: list[ast.stmt] = []
        for t in take:
            assert isinstance(t, ast.Assign)
            item = ast.copy_location(ast.Assign(t.targets, method(w, "item")), node)
            body += [*self.touched(sorted(stored([item]))), *self.assignments(item.targets, item.value)]
        body += self.block(node.body)
        work = ast.If(method(w, "working"), body, [])
        failed = ast.ExceptHandler(load("Exception"), error, [ast.Expr(method(w, "failed", load(error)))])
        guarded = ast.Try([*test, work, ast.Expr(method(w, "leave", state(names)))], [failed], [], [])
        step = ast.While(
            method(w, "more"), [unpack(names, ast.Attribute(load(w), "state", ast.Load())), guarded], []
        )
        start = store(w, rt("loop", site, over, state(names)))
        return [start, step, unpack(names, ast.Attribute(load(w), "state", ast.Load()))]

    def visit_With(self, node: ast.With) -> ast.AST:
        for item in node.items:
            item.context_expr = rt("inside", self.visit(item.context_expr))
        node.body = self.block(node.body)
        return node

    def visit_Try(self, node: ast.Try | ast.TryStar) -> ast.AST:
        node.body = self.block(node.body)
        node.orelse = self.block(node.orelse)
        node.finalbody = self.block(node.finalbody)
        if node.handlers:
            kinds = [h.type or load("BaseException") for h in node.handlers]
            caught = rt("catching", later(ast.Tuple(copy.deepcopy(kinds), ast.Load())))
            node.body = [ast.With([ast.withitem(caught)], node.body)]
        for h in node.handlers:
            h.body = self.block(h.body)
        return node

    visit_TryStar = visit_Try

    def visit_Match(self, node: ast.Match) -> ast.AST:
        by_class = ast.Constant(any(classes_of(node)))
        node.subject = rt("subject", self.site(node), self.visit(node.subject), by_class)
        for c in node.cases:
            if c.guard is not None:
                c.guard = rt("plain", self.site(node), self.test(c.guard))
            c.body = self.block(c.body)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        failed = ast.Raise(ast.Call(load("AssertionError"), [node.msg] if node.msg is not None else [], []), None)
        test = ast.UnaryOp(ast.Not(), rt("asserted", self.site(node), self.test(node.test)))
        return ast.If(test, [failed], [])

    def visit_Raise(self, node: ast.Raise) -> list[ast.stmt]:
        self.generic_visit(node)
        return [ast.Expr(rt("raising", self.site(node))), node]

    # --- writes ---

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt] | ast.stmt:
        return self.assignments(node.targets, self.visit(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt] | ast.stmt:
        if node.value is None:
            return ast.Pass()
        return self.assignments([node.target], self.visit(node.value))

    def assignments(self, targets: Sequence[ast.expr], value: ast.expr) -> list[ast.stmt]:
        if any(isinstance(t, (ast.Tuple, ast.List)) for t in targets) and not isinstance(value, (ast.Tuple, ast.List)):
            value = rt("spread", value)
        if all(plain_target(t) for t in targets):
            return [ast.Assign(list(targets), taken_apart(targets, value))]
        name = self.fresh("v")
        made = [store(name, value)]
        for t in targets:
            made += self.assign(t, load(name))
        return made

    def assign(self, target: ast.expr, value: ast.expr) -> list[ast.stmt]:
        match target:
            case ast.Attribute():
                obj = self.visit(target.value)
                return [ast.Expr(rt("set_attr", obj, ast.Constant(self.mangled(target.attr)), value))]
            case ast.Subscript():
                return [ast.Expr(rt("set_item", self.visit(target.value), self.key(target.slice), value))]
            case ast.Tuple() | ast.List() if not plain_target(target):
                names = [self.fresh("v") for _ in target.elts]
                parts: list[ast.expr] = [
                    ast.Starred(ast.Name(n, ast.Store()), ast.Store())
                    if isinstance(e, ast.Starred)
                    else ast.Name(n, ast.Store())
                    for n, e in zip(names, target.elts, strict=True)
                ]
                made: list[ast.stmt] = [ast.Assign([ast.Tuple(parts, ast.Store())], taken_apart([ast.Tuple(parts)], value))]
                for n, e in zip(names, target.elts, strict=True):
                    made += self.assign(e.value if isinstance(e, ast.Starred) else e, load(n))
                return made
            case _:
                return [ast.Assign([target], taken_apart([target], value))]

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        op = ast.Constant(OPERATORS[type(node.op)])
        value = self.visit(node.value)
        match node.target:
            case ast.Name(id=name):
                return store(name, rt("augmented", op, self.name(name), value))
            case ast.Attribute():
                obj = self.visit(node.target.value)
                return ast.Expr(rt("augment_attr", op, obj, ast.Constant(self.mangled(node.target.attr)), value))
            case _:
                obj = self.visit(node.target.value)
                return ast.Expr(rt("augment_item", op, obj, self.key(node.target.slice), value))

    def visit_Delete(self, node: ast.Delete) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        for t in node.targets:
            match t:
                case ast.Name(id=name):
                    made.append(store(name, rt("undefined", ast.Constant(name))))
                    self.unsure.add(name)
                case ast.Subscript():
                    made.append(ast.Expr(rt("del_item", self.visit(t.value), self.key(t.slice))))
                case ast.Attribute():
                    made.append(ast.Expr(rt("del_attr", self.visit(t.value), ast.Constant(self.mangled(t.attr)))))
                case _:
                    made.append(ast.Delete([t]))
        return made

    # --- expressions ---

    def mangled(self, name: str) -> str:
        if self.owner is None or not name.startswith("__") or name.endswith("__"):
            return name
        return f"_{self.owner.lstrip('_')}{name}"

    def name(self, name: str) -> ast.expr:
        if name in self.unsure:
            return rt("read", load(name))
        return rt("narrowed", load(name)) if name in self.locals | self.outer else load(name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.mangled(node.id)
        if isinstance(node.ctx, ast.Load) and node.id in self.unsure | self.locals | self.outer:
            return ast.copy_location(self.name(node.id), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self.mangled(node.attr)
        own = isinstance(node.value, ast.Name) and node.value.id in self.unsure | self.locals | {self.first}
        node.value = self.visit(node.value)
        if node.attr == "__class__" and isinstance(node.ctx, ast.Load):
            return rt("class_of", node.value)
        return rt("narrowed", node) if own and isinstance(node.ctx, ast.Load) else node

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        return ast.Starred(rt("spread", self.visit(node.value)), node.ctx) if isinstance(node.ctx, ast.Load) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in _NATIVE:
            if node.func.id == "super" and not node.args and self.first is not None:
                return ast.Call(load("super"), [load("__class__"), load(self.first)], [])
            return self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in _FOLDS and len(node.args) == 1:
            (only,) = node.args
            if isinstance(only, ast.GeneratorExp) and node.func.id in ("any", "all") and len(only.generators) == 1:
                return self.short(node.func, only)
            if isinstance(only, ast.GeneratorExp):
                node.args = [ast.copy_location(ast.ListComp(only.elt, only.generators), only)]
        args = [self.visit(node.func), *(self.visit(a) for a in node.args)]
        keywords = [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords]
        return ast.Call(ast.Attribute(load(RUNTIME), "call", ast.Load()), args, keywords)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return rt("get_item", self.visit(node.value), self.key(node.slice))

    def key(self, e: ast.expr) -> ast.expr:
        """A subscript as an expression: slices as `slice` objects."""
        match e:
            case ast.Slice(lower, upper, step):
                parts = [self.visit(p) if p is not None else ast.Constant(None) for p in (lower, upper, step)]
                return rt("slice", *parts)
            case ast.Tuple(elts):
                return ast.Tuple([self.key(x) for x in elts], ast.Load())
            case _:
                made: ast.expr = self.visit(e)
                return made

    def test(self, e: ast.expr) -> ast.expr:
        """An expression of which only the truth counts."""
        match e:
            case ast.BoolOp(op, values) if not any(map(binds, values[1:])):
                first, *others = [self.test(v) for v in values]
                name = "all_of" if isinstance(op, ast.And) else "any_of"
                return ast.copy_location(rt(name, self.site(e), first, *map(later, others)), e)
            case ast.UnaryOp(ast.Not(), operand):
                return ast.copy_location(rt("not_", self.test(operand)), e)
            case _:
                made: ast.expr = self.visit(e)
                return made

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        site = self.site(node)
        if any(map(binds, node.values[1:])):
            node.values = [*(rt("known_value", site, self.visit(v)) for v in node.values[:-1]), self.visit(node.values[-1])]
            return node
        first, *others = [self.visit(v) for v in node.values]
        return rt("and_" if isinstance(node.op, ast.And) else "or_", site, first, *map(later, others))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            return rt("not_", self.test(node.operand))
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        site = self.site(node)
        if binds(node.body) or binds(node.orelse):
            node.test = rt("known_value", site, self.test(node.test))
            node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
            return node
        parts = (later(self.visit(node.body)), later(self.visit(node.orelse)))
        return rt("either", site, self.test(node.test), *parts)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if len(node.ops) == 1:
            left, right = self.visit(node.left), self.visit(node.comparators[0])
            if isinstance(node.ops[0], (ast.In, ast.NotIn)):
                return rt("contains" if isinstance(node.ops[0], ast.In) else "lacks", self.site(node), left, right)
            if isinstance(node.ops[0], (ast.Is, ast.IsNot)):
                return rt("is_" if isinstance(node.ops[0], ast.Is) else "is_not", left, right)
            if isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
                return rt("equal" if isinstance(node.ops[0], ast.Eq) else "unequal", self.site(node), left, right)
            return rt("ordered", ast.Constant(OPERATORS[type(node.ops[0])]), left, right)
        if any(map(binds, node.comparators)):
            return self.generic_visit(node)
        parts: list[ast.expr] = [
            ast.Tuple([ast.Constant(OPERATORS[type(op)]), later(self.visit(c))], ast.Load())
            for op, c in zip(node.ops, node.comparators, strict=True)
        ]
        return rt("chain", self.site(node), self.visit(node.left), *parts)

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """As it is, where what decides in it is known; else the loop that it stands for."""
        if self.hoisted is None or len(node.generators) != 1 or node.generators[0].is_async or binds(node):
            return self.comprehension(node)
        (g,), loop = node.generators, self.hoist(list_loop, node)
        over = self.visit(g.iter)
        plain = self.inside(node)
        return rt("listed", self.site(node), over, ast.Constant(bool(g.ifs)), plain, loop)

    def hoist(self, as_loop: Callable[..., ast.FunctionDef], *args: Any) -> ast.expr:
        """A function of the iterable that is defined ahead of the statement."""
        assert self.hoisted is not None
        name = self.fresh("comp")
        inner = _Function(self.file, self.sites, self.owner)
        inner.outer = self.outer | self.unsure | self.locals
        self.hoisted.append(inner.function(as_loop(name, *args)))
        return load(name)

    def inside(self, node: ast.ListComp | ast.GeneratorExp) -> ast.expr:
        """A function of the iterable with the comprehension as it is."""
        node.generators[0].iter = load("dlc__items")
        around, self.hoisted = self.hoisted, None
        plain = self.comprehension(node)
        self.hoisted = around
        return ast.Lambda(items_of_comprehension(), plain)

    def short(self, function: ast.Name, node: ast.GeneratorExp) -> ast.expr:
        """`any` or `all` of a generator: all its items, where computing them changes nothing; else a loop that ends early."""
        (g,) = node.generators
        loops = self.hoisted is not None and not g.is_async and not binds(node)
        loop = self.hoist(short_loop, node, function.id == "any") if loops else None
        names, over = ast.Constant(binds(node)), self.visit(g.iter)
        plain = self.inside(node)
        return rt("short", self.visit(function), over, names, plain, *([] if loop is None else [loop]))

    def comprehension(self, node: Any) -> ast.expr:
        for g in node.generators:
            g.iter = rt("iterate", self.site(node), self.visit(g.iter))
            g.ifs = [rt("plain", self.site(node), self.test(i)) for i in g.ifs]
        for part in ("elt", "key", "value"):
            if hasattr(node, part):
                setattr(node, part, self.visit(getattr(node, part)))
        return rt("born", node)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = comprehension

    def display(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        return rt("born", node) if isinstance(getattr(node, "ctx", ast.Load()), ast.Load) else node

    visit_List = visit_Set = visit_Dict = display


class _Generator(_Function):
    """A function that stops at its `yield`s: its control stays as it is, and must be known; what it calls and writes is handed over.

        while not done(x):            while rt.known_here(site, rt.not_(rt.call(done, x))):
            self.n = self.n + 1  ->       rt.set_attr(self, "n", self.n + 1)
            yield x                       yield x
    """

    def prepared(self, node: ast.FunctionDef) -> set[str]:
        return set()

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        ends = any(isinstance(n, (ast.Try, ast.With)) and binds(n) for s in node.body for n in ast.walk(s))
        made, token = super().function(node), self.fresh("s")
        if not ends:
            return made
        at = 1 if is_docstring(made.body[0]) else 0
        started = store(token, rt("started", self.site(node)))
        body = ast.Try(made.body[at:], [], [], [ast.Expr(rt("finished", load(token)))])
        for s in (started, body):
            ast.copy_location(s, node)
            fill_locations(s, node)
        made.body = [*made.body[:at], started, body]
        return made

    def visit_If(self, node: ast.If) -> Any:
        return self.kept(node)

    def visit_While(self, node: ast.While) -> Any:
        return self.kept(node)

    def kept(self, node: ast.If | ast.While) -> ast.stmt:
        node.test = self.known(node)
        node.body, node.orelse = self.block(node.body), self.block(node.orelse)
        return node

    def known(self, node: Any) -> ast.expr:
        return rt("known_here", self.site(node), self.test(node.test))

    def visit_For(self, node: ast.For) -> Any:
        node.iter = rt("iterate", self.site(node), rt("spread", self.visit(node.iter)))
        body, targets = self.block(node.body), sorted(stored([node.target]))
        if self.touched(targets) or not plain_target(node.target):
            item = self.fresh("v")
            body = [*self.touched(targets), *self.assign(node.target, load(item)), *body]
            node.target = ast.Name(item, ast.Store())
        node.body, node.orelse = body, self.block(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        if not binds(node):
            return super().visit_IfExp(node)
        node.test, node.body, node.orelse = self.known(node), self.visit(node.body), self.visit(node.orelse)
        return node


def _rewriter(node: ast.FunctionDef) -> type[_Function]:
    return _Generator if is_generator(node) else _Function


_COMPOUND = (ast.If, ast.While, ast.Try, ast.TryStar, ast.Match, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _state_names(body: Sequence[ast.stmt]) -> dict[str, None]:
    """Names that some branch or loop of this scope stores."""
    names: dict[str, None] = {}
    pending: list[ast.AST] = list(body)
    while pending:
        n = pending.pop()
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(n, (ast.If, ast.While, ast.For)):
            names.update(stored([n]))
        pending += ast.iter_child_nodes(n)
    return names


__all__ = ["NotRewritable", "Site", "rewrite"]
