"""Code of the model's own that runs where no call is written, or out of sight, in an arm: what it changes is changed on that path only."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import itertools
import operator
import re
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.frontend.torch_state import Kept
from tests.frontend.torch_case import Fn, check, close, run

X, Y = torch.tensor([1.0, 2.0, -0.5]), torch.tensor([-1.0, -2.0, 0.5])

# --- the special methods ---------------------------------------------------------------------------------------------

METHODS = {
    "__add__(self, o)": ("a + 1", "3"), "__radd__(self, o)": ("1 + a", "3"), "__neg__(self)": ("-a", "3"),
    "__invert__(self)": ("~a", "3"), "__pow__(self, o)": ("a ** 2", "3"), "__matmul__(self, o)": ("a @ 1", "3"),
    "__iadd__(self, o)": ("[b := a, b.__iadd__(1)]", "self"), "__divmod__(self, o)": ("divmod(a, 2)", "3"),
    "__abs__(self)": ("abs(a)", "3"), "__round__(self)": ("round(a)", "3"), "__eq__(self, o)": ("[a] == [5]", "True"),
    "__ne__(self, o)": ("a != 1", "True"), "__lt__(self, o)": ("sorted([a, a])", "True"), "__gt__(self, o)": ("max(a, a)", "True"),
    "__le__(self, o)": ("a <= 1 < 2", "True"), "__len__(self)": ("len(a)", "2"), "__bool__(self)": ("3 if a else 4", "True"),
    "__contains__(self, o)": ("3 in a", "True"), "__getitem__(self, k)": ("a[3]", "3"), "__getattr__(self, k)": ("a.more", "3"),
    "__iter__(self)": ("[*a]", "iter([1])"), "__reversed__(self)": ("list(reversed(a))", "iter([1])"),
    "__format__(self, s)": ("len(f'{a}')", "'x'"), "__str__(self)": ("len(str(a))", "'x'"), "__repr__(self)": ("repr([a])", "'x'"),
    "__bytes__(self)": ("bytes(a)", "b'x'"), "__hash__(self)": ("{a: 1}", "7"), "__index__(self)": ("[1, 2][a]", "1"),
    "__int__(self)": ("int(a)", "1"), "__float__(self)": ("float(a)", "1.0"), "__call__(self, v)": ("sorted([1, 2], key=a)", "-v"),
    "__length_hint__(self)": ("operator.length_hint(a)", "1"), "__dir__(self)": ("dir(a)", "['x']"), "__copy__(self)": ("copy.copy(a)", "1"),
}  # fmt: skip

SOURCE = """
import copy, operator
from torch import nn

class Logging:
    def __init__(self):
        self.log, self.count = [], 0

    def {method}:
        self.log.append(1)
        self.count = self.count + 1
        return {result}

class Model(nn.Module):
    def forward(self, x):
        a = Logging()
        if x.sum() > 0:
            {run}
        return x * len(a.log) + a.count
"""


@pytest.mark.parametrize("method", METHODS)
def test_special_method_in_an_arm(method, tmp_path):
    expression, result = METHODS[method]
    file = tmp_path / "written.py"
    file.write_text(SOURCE.format(method=method, result=result, run=expression))
    spec = importlib.util.spec_from_file_location("written", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = dict(vars(module.Logging))
    for example in (X, Y):
        imported = import_torch(module.Model().eval(), (example,))
        for x in (X, Y, 2 * X):
            close(run(imported, (x,))[0], module.Model()(x))
    assert dict(vars(module.Logging)) == own


# --- attributes, classes ---------------------------------------------------------------------------------------------


class Descriptor:
    def __get__(self, owner, kind=None):
        owner.log.append(2)
        return 2


class Record:
    attribute = Descriptor()

    def __init__(self):
        self.log = []

    @property
    def noted(self):
        self.log.append(1)
        return 2 if len(self.log) > 1 else 3

    @functools.cached_property
    def computed(self):
        self.log.append(1)
        return 2

    @functools.cached_property
    def table(self):
        return 5


class Later(Record):
    @property
    def noted(self):
        self.log.append(2)
        return super().noted + 1


class Choosing(Record):
    def __getattribute__(self, name):
        if name == "more":
            object.__getattribute__(self, "log").append(1)
            return 3
        return object.__getattribute__(self, name)


class Around:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Kind(type):
    log: list[int] = []

    def __len__(cls):
        Kind.log.append(1)
        return 3

    def __call__(cls):
        Kind.log.append(1)
        return super().__call__()

    def __instancecheck__(cls, v):
        Kind.log.append(1)
        return True


class OfKind(metaclass=Kind):
    def __init_subclass__(cls):
        Kind.log.append(1)

    def __new__(cls):
        Kind.log.append(1)
        return object.__new__(cls)

    def __class_getitem__(cls, k):
        Kind.log.append(1)
        return k


def attribute_in_an_arm(read, make):
    def program(x):
        record, found = make(), 1
        if x.sum() > 0:
            found = read(record)
        return x * len(record.log) + found

    return program


READ = {
    "property": (lambda r: r.noted, Record), "getattr": (lambda r: getattr(r, "noted"), Record),  # noqa: B009  # it is what is tested
    "attrgetter": (operator.attrgetter("noted"), Record), "of a subclass": (lambda r: r.noted, Later),
    "descriptor": (lambda r: r.attribute, Record), "cached": (lambda r: r.computed + r.computed, Record),
    "__getattribute__": (lambda r: r.more, Choosing), "delegated": (lambda r: Around(r).noted, Record),
    "existing list": (lambda r: getattr(r, "log").append(1) or 3, Record),  # noqa: B009
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_attribute_that_code_stands_behind(name):
    check(attribute_in_an_arm(*READ[name]), X, others=[(Y,)])


def cached_before_and_after(x):
    record = Record()
    if x.sum() > 0:
        x = x * record.table
    return x + record.table


def truth_from_data(x):
    items = Bag()
    if x.sum() > 0:
        items.held.append(x)
    return x * len(items) + 1 if items else x - 1


class Bag:
    def __init__(self):
        self.held = []

    def __len__(self):
        return len(self.held)


def of_the_metaclass(x):
    Kind.log.clear()
    n = 0
    if x.sum() > 0:
        n = len(OfKind) + isinstance(3, OfKind) + OfKind[2]
        OfKind()
    return x * len(Kind.log) + n


def class_made_in_an_arm(x):
    Kind.log.clear()
    log = []
    if x.sum() > 0:

        class Made(OfKind):
            log.append(1)

    return x * len(Kind.log) + len(log)


def class_of_the_function(x):
    log = []

    class Local:
        def __add__(self, other):
            log.append(1)
            return other

    a, n = Local(), 0
    if x.sum() > 0:
        n = a + 1
    return x * len(log) + n


def pattern(x):
    record, n = Record(), 0
    if x.sum() > 0:
        match record:
            case Record(noted=3):
                n = 2
    return x * len(record.log) + n


# --- generators ------------------------------------------------------------------------------------------------------

COUNT = 0


class Counter:
    def __init__(self):
        self.n = 0

    def steps(self):
        for i in range(3):
            self.n += 1
            yield i

    def __iter__(self):
        yield from self.steps()

    @contextlib.contextmanager
    def entered(self):
        self.n += 1
        try:
            yield self
        finally:
            self.n += 10


def counting():
    global COUNT
    for i in range(2):
        COUNT += 1
        yield i


def generator_in_an_arm(use):
    def program(x):
        counter, found = Counter(), 0
        if x.sum() > 0:
            found = use(counter)
        return x * counter.n + found

    return program


def unpacked(counter):
    a, _, _ = counter.steps()
    return a


def left_early(counter):
    for i, v in enumerate(counter.steps()):
        if i:
            return v
    return 7


USES = {
    "sum": lambda c: sum(c.steps()), "dict": lambda c: len(dict(zip("abc", c.steps(), strict=True))), "spread": lambda c: len([*c.steps()]),
    "join": lambda c: len("".join(map(str, c.steps()))), "iter": lambda c: sum(v for v in c), "in": lambda c: 1 if 1 in c else 2,
    "next": lambda c: next(c.steps()), "unpacked": unpacked, "left early": left_early,
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_generator_in_an_arm(name):
    check(generator_in_an_arm(USES[name]), X, others=[(Y,)])


def global_of_a_generator(x):
    global COUNT
    COUNT = n = 0
    if x.sum() > 0:
        for v in counting():
            n += v
    return x * COUNT + n


def nonlocal_of_a_generator(x):
    n = 0

    def steps():
        nonlocal n
        for i in range(3):
            n += 1
            yield i

    y = sum(v for v in steps()) if x.sum() > 0 else 0
    return x * n + y


def sent_to(x):
    log = []

    def taking():
        while True:
            log.append((yield len(log)))

    n = 0
    if x.sum() > 0:
        items = taking()
        next(items)
        n = items.send(5)
    return x * len(log) + n


def context_of_a_generator(x):
    counter = Counter()
    if x.sum() > 0:
        with counter.entered() as c:
            x = x * c.n + 2
    return x * counter.n


def taken_in_turn(x):
    counter = Counter()
    for _ in counter.steps():
        x = x + counter.n
    return x


# --- functions that others call --------------------------------------------------------------------------------------


class Keyed(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.use = use
        self.act = nn.ReLU()
        self.act.register_forward_hook(self.hook)

    def hook(self, *_):
        self.n += 1

    def key(self, v, *_):
        self.n += 1
        return -v if isinstance(v, int) else None

    def forward(self, x):
        self.n = 0
        if x.sum() > 0:
            self.use(self, x)
        return x * self.n


CALLED = {
    "sorted": lambda m, x: sorted([1, 2, 3], key=m.key), "sort": lambda m, x: [1, 2].sort(key=m.key), "max": lambda m, x: max([1, 2], key=m.key),
    "partial": lambda m, x: sorted([1, 2], key=functools.partial(m.key)), "reduce": lambda m, x: functools.reduce(m.key, [1, 2, 3]),
    "filter": lambda m, x: list(filter(m.key, [1, 2])), "accumulate": lambda m, x: list(itertools.accumulate([1, 2], m.key)),
    "re.sub": lambda m, x: re.sub("a", lambda found: str(m.key(1)), "aa"), "apply": lambda m, x: m.act.apply(m.key), "hook": lambda m, x: m.act(x),
    "tree_map": lambda m, x: torch.utils._pytree.tree_map(m.key, [1, 2]), "without source": lambda m, x: UNSOURCED["raised"](m),
    "key without source": lambda m, x: sorted([m, m], key=UNSOURCED["raised"]),
}  # fmt: skip

UNSOURCED: dict = {"LOG": []}
exec("def raised(m):\n    m.n = m.n + 1\n    return m.n\ndef noted(v):\n    LOG.append(v)\ndef steps():\n    yield 1", UNSOURCED)


@pytest.mark.parametrize("name", CALLED)
def test_function_that_is_called_out_of_sight(name):
    imported = import_torch(Keyed(CALLED[name]).eval(), (X,))
    for x in (X, Y):
        close(run(imported, (x,))[0], Keyed(CALLED[name])(x))


def global_of_code_without_source(x):
    UNSOURCED["LOG"].clear()
    if x.sum() > 0:
        UNSOURCED["noted"](1)
    return x * len(UNSOURCED["LOG"])


def callback_of_a_container(x):
    log = []
    if x.sum() > 0:
        with contextlib.ExitStack() as stack:
            stack.callback(log.append, 1)
    return x * len(log)


RECORDED = [
    cached_before_and_after, truth_from_data, of_the_metaclass, class_made_in_an_arm, class_of_the_function, pattern, global_of_a_generator,
    nonlocal_of_a_generator, sent_to, context_of_a_generator, taken_in_turn, global_of_code_without_source, callback_of_a_container,
]  # fmt: skip


@pytest.mark.parametrize("program", RECORDED)
def test_is_recorded(program):
    check(program, X, others=[(Y,), (2 * X,)])


# --- what is refused -------------------------------------------------------------------------------------------------


def ended_with_a_loop(x):
    log = []

    def steps():
        try:
            yield 1
        finally:
            log.append(1)

    if x.sum() > 0:
        for _ in steps():
            break
    return x * len(log)


class Ending:
    def __init__(self, log):
        self.log = log

    def __del__(self):
        self.log.append(1)


def object_that_ends(x):
    log = []
    if x.sum() > 0:
        ending = Ending(log)
        del ending
    return x * len(log)


def left_where_data_say(x):
    counter = Counter()
    for _ in counter.steps():
        x = x + counter.n
        if x.sum() > 5:
            break
    return x * counter.n


async def later(log):
    log.append(1)


def coroutine(x):
    log = []
    if x.sum() > 0:
        asyncio.new_event_loop().run_until_complete(later(log))
    return x * len(log)


def generator_without_source(x):
    for v in UNSOURCED["steps"]():
        x = x * v if x.sum() > 0 else x
    return x


def computed_with_effects(x):
    record = Record()
    if x.sum() > 0:
        x = x * record.computed
    return x * record.computed + len(record.log)


def length_from_data(x):
    bag = Bag()
    if x.sum() > 0:
        bag.held.append(x)
    return x * len([*range(operator.length_hint(bag))])


def thread_started(x):
    log = []
    if x.sum() > 0:
        other = threading.Thread(target=log.append, args=(1,))
        other.start()
        other.join()
    return x * len(log)


REFUSED = [
    (thread_started, "DLC0224.*what a thread does"), (ended_with_a_loop, "DLC0224.*left early"), (object_that_ends, "DLC0224.*when 'Ending.__del__' runs"),
    (left_where_data_say, "DLC0220.*how far an iterator has come"), (coroutine, "DLC0220.*what 'later' does.*coroutine"),
    (generator_without_source, "DLC0220.*what 'steps' does"), (computed_with_effects, "DLC0222.*Record.computed"),
    (length_from_data, "DLC0220.*the result of 'Bag.__len__'"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "text"), REFUSED)
def test_is_refused(program, text):
    with pytest.raises(DlcError, match=re.compile(text, re.DOTALL)):
        import_torch(Fn(program).eval(), (X,))


# --- classes are as they were ----------------------------------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, x):
        record = Record()
        if x.sum() > 0:
            record.log.append(1)
        raise ValueError(len(record.log))


def test_classes_are_as_they_were_after_an_error():
    own = dict(vars(Record)), dict(vars(Failing))
    with pytest.raises(DlcError):
        import_torch(Failing(), (X,))
    assert (dict(vars(Record)), dict(vars(Failing))) == own


ASKED, ANSWERED = threading.Event(), threading.Event()


class Asking(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            x = x * Record().noted
        ASKED.set()
        ANSWERED.wait(9)
        return x


def test_other_threads_meet_the_methods_as_they_were():
    found = []

    def elsewhere():
        ASKED.wait(9)
        record = Record()
        found.append((record.noted, record.log))
        ANSWERED.set()

    other = threading.Thread(target=elsewhere)
    other.start()
    import_torch(Asking(), (X,))
    other.join()
    assert found == [(3, [1])]


# --- containers with methods of their own ----------------------------------------------------------------------------


class Result(OrderedDict):
    """As a library writes its results: attributes are items, and it may not be updated; it says how it is copied."""

    def __init__(self, **items):
        super().__init__()
        for name, value in items.items():
            setattr(self, name, value)

    def __setattr__(self, name, value):
        super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self):
        return (type(self), (), dict(self)) if isinstance(self, Result) else None

    def update(self, *_, **__):
        raise TypeError("no update")

    def clear(self):
        raise TypeError("no clear")

    @property
    def __class__(self):
        return Result


def record_in_an_arm(x):
    found = Result(a=x, n=1)
    if x.sum() > 0:
        found.a = x * 2
        found["n"] = found["n"] + 1
    return found.a * found["n"] * len(found)


def one_of_two_records(x):
    near, far = Result(a=x, n=1), Result(a=x * 3, n=5)
    found = near if x.sum() > 0 else far
    return found.a * found["n"] + found["a"] * found.n


@pytest.mark.parametrize("program", [record_in_an_arm, one_of_two_records])
def test_containers_are_kept_past_their_own_methods(program):
    check(program, X, others=[(Y,), (2 * X,)])


class ByType:
    def __init__(self):
        self.n = 0

    @functools.singledispatchmethod
    def noted(self, v):
        self.n += 1
        return v

    @noted.register
    def _(self, v: int):
        self.n += 10
        return v * 2


def by_type(x):
    made = ByType()
    if x.sum() > 0:
        x = x + made.noted(3)
    return made.noted(x) + made.n


def test_method_chosen_by_type_in_an_arm():
    before = vars(ByType)["noted"]
    check(by_type, X, others=[(Y,), (2 * X,)])
    assert vars(ByType)["noted"] is before


def test_what_is_called_when_an_object_ends_is_refused():
    def program(x):
        seen, made = [], Record()
        kept = weakref.ref(made, seen.append)
        if x.sum() > 0:
            del made
        return x + len(seen) if kept is not None else x

    with pytest.raises(DlcError, match="DLC0224"):
        import_torch(Fn(program).eval(), (X,))


def test_several_threads_import_at_once():
    found = []

    def importing():
        try:
            found.append(import_torch(Fn(by_type).eval(), (X,)))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=importing) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for imported in found:
        for x in (X, Y):
            close(run(imported, (x,))[0], by_type(x))


def test_classes_of_extensions_are_left_alone():
    """Their attributes are not Python's to change: a session that a model holds."""
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")

    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.options = state.SessionOptions()

        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    import_torch(Holding().eval(), (X,))


class OfInstances(type):
    """As Cython makes them: what it says of a module is a descriptor, for the classes that it makes."""

    __module__ = property(lambda kind: "elsewhere")


class Made(metaclass=OfInstances):
    def scale(self):
        return 2


def test_a_metaclass_need_not_name_its_module():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.made, self.makes = Made(), OfInstances

        def forward(self, x):
            return x * self.made.scale() if x.sum() > 0 else x

    check(Holding().eval(), X, others=[(Y,)])


def asserting(x):
    assert x.shape[0] == 3
    return x


def test_what_pytest_writes_into_assertions_is_not_the_models():
    """Its configuration leads to every test of the run."""
    model = Fn(asserting)
    assert any("pytest" in name for name in asserting.__code__.co_names)
    kept = Kept.of(model)
    assert not any(type(v).__module__.startswith(("_pytest", "pluggy")) for v, _, _ in kept.spaces)


def joined_items(x):
    if x.sum() > 0:
        return x * len("".join(map(str, [1, 2])))
    return x


def fails(*_):
    raise RuntimeError("no backend")


def test_new_objects_are_known_where_torchdynamo_evaluates_frames():
    """A call holds one reference more after a `torch.compile` that failed."""
    with pytest.raises(Exception, match="no backend"):
        torch.compile(nn.Linear(3, 3).eval(), backend=fails)(X)
    check(joined_items, X, others=[(Y,)])
    torch._dynamo.reset()
