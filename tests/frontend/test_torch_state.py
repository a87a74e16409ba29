"""Models that change what outlives a call: refused where later calls compute with it, compiled where none does."""

from __future__ import annotations

import array
import contextlib
import contextvars
import copy
import functools
import gc
import inspect
import io
import itertools

import random
import threading
import weakref
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.frontend.torch_state import Kept
from tests.frontend import torch_counts
from tests.frontend.torch_case import run

TOTAL = 0
SHARED = {"n": 0}


class Keeper(nn.Module):
    """A module with attributes of its own and a `forward` that is given, as a method."""

    per_class = 0

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def keeper(forward, **attributes):
    made = type(forward.__name__.title(), (Keeper,), {"forward": forward, "helped": helped, "__module__": __name__})
    return made(**attributes).eval()


@dataclass
class Record:
    n: int = 0


def helped(self, x):
    return add_to(self, x)


def add_to(holder, x):
    holder.n += 1
    return x * holder.n


# --- what is refused -------------------------------------------------------------------------------------------------


def counted(self, x):
    self.n += 1  # here
    return x * self.n  # there


def counted_in_floats(self, x):
    self.n = self.n * 0.5  # here
    return x + self.n  # there


def counted_on_data(self, x):
    self.n += 1  # here
    if x.sum() > 0:
        return x * self.n  # there
    return x


def counted_on_one_path(self, x):
    if x.sum() > 0:
        self.n += 1  # here
    return x * self.n  # there


def counted_after_it_is_read(self, x):
    y = x * self.n  # there
    self.n += 1  # here
    return y


def first_call_is_another(self, x):
    if self.first:
        self.first = False  # here
        return x
    return x * 2


def every_third_call_is_another(self, x):
    self.n = (self.n + 1) % 3  # here
    return x if self.n == 0 else x * 2


def list_grows(self, x):
    self.items.append(1)  # here
    return x * len(self.items)


def list_of_results_grows(self, x):
    self.items.append(x)  # here
    return torch.stack(self.items).sum(0)


def queue(self, x):
    self.items.append(x)  # here
    if len(self.items) > 2:
        self.items.pop(0)
    return x + self.items[0]


def dict_of_floats(self, x):
    self.table["scale"] *= 2  # here
    return x * self.table["scale"]  # there


def last_result(self, x):
    y = x if self.last is None else x + self.last  # there
    self.last = y  # here
    return y


def mean_of_inputs(self, x):
    y = x - self.last  # there
    self.last = 0.9 * self.last + 0.1 * x  # here
    return y


def object_of_its_own(self, x):
    self.record.n += 1  # here
    return x * self.record.n  # there


def class_attribute(self, x):
    Keeper.per_class += 1  # here
    return x * Keeper.per_class  # there


def global_variable(self, x):
    global TOTAL
    TOTAL += 1  # here
    return x * TOTAL  # there


def global_container(self, x):
    SHARED["n"] += 1  # here
    return x * SHARED["n"]  # there


def default_argument(self, x, seen=[0]):  # noqa: B006
    seen[0] += 1  # here
    return x * seen[0]  # there


def alternates(self, x):
    self.a, self.b = self.b, self.a  # here
    return x * self.a  # there


def one_list_by_two_names(self, x):
    self.a = self.b = [0, *self.c]
    self.c.append(1)  # here
    return x * len(self.b)


def raises_later(self, x):
    self.n += 1  # here
    if self.n > 2:
        raise ValueError("enough")
    return x


REFUSED = {
    f.__name__: (f, attributes)
    for f, attributes in [
        (counted, {"n": 0}), (counted_in_floats, {"n": 1.0}), (counted_on_data, {"n": 0}), (counted_on_one_path, {"n": 0}),
        (counted_after_it_is_read, {"n": 0}), (first_call_is_another, {"first": True}), (every_third_call_is_another, {"n": 0}),
        (list_grows, {"items": []}), (list_of_results_grows, {"items": []}), (queue, {"items": []}),
        (dict_of_floats, {"table": {"scale": 1.0}}), (last_result, {"last": None}), (mean_of_inputs, {"last": torch.zeros(3)}),
        (object_of_its_own, {"record": Record()}), (class_attribute, {}), (global_variable, {}), (global_container, {}),
        (default_argument, {}), (alternates, {"a": 1, "b": 2}), (one_list_by_two_names, {"c": []}), (raises_later, {"n": 0}),
    ]
}  # fmt: skip


def line(function, mark):
    lines, first = inspect.getsourcelines(function)
    found = [first + n for n, text in enumerate(lines) if f"# {mark}" in text]
    return f"test_torch_state.py:{found[0]}" if found else None


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_it_is_changed_and_where_it_is_read(name):
    forward, attributes = REFUSED[name]
    attributes = copy.deepcopy(attributes)
    model = keeper(forward, **attributes)
    with pytest.raises(DlcError, match="DLC0215.*in place, and a compiled call leaves nothing behind") as caught:
        import_torch(model, (torch.tensor([1.0, 2.0, -0.5]),))
    error = caught.value
    assert str(error.loc) == line(forward, "here"), error.render()
    assert "# here" in str(error) and error.notes
    there = line(forward, "there")
    assert there is None or there in error.notes[0], error.render()
    for key, value in attributes.items():
        assert str(getattr(model, key)) == str(value)
    assert (TOTAL, SHARED, Keeper.per_class) == (0, {"n": 0}, 0)


def test_nested_module_and_helper_function():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = keeper(helped, n=0)

        def forward(self, x):
            return self.inner(x) + 1

    with pytest.raises(DlcError, match="DLC0215.*'Helped.n'") as caught:
        import_torch(Outer().eval(), (torch.ones(3),))
    assert str(caught.value.loc) == f"test_torch_state.py:{inspect.getsourcelines(add_to)[1] + 1}"


def test_hook_and_closure():
    calls = 0

    def scaled(_module, _args, result):
        nonlocal calls
        calls += 1
        return result * calls

    model = nn.Sequential(nn.Linear(3, 3)).eval()
    model[0].register_forward_hook(scaled)
    with pytest.raises(DlcError, match="DLC0215.*'calls'"):
        import_torch(model, (torch.ones(3),))
    assert calls == 0


def test_iterators_and_random_numbers_of_python():
    ids = keeper(lambda self, x: x * next(self.ids), ids=itertools.count(1))
    with pytest.raises(DlcError, match="DLC0215.*ids' .an iterator"):
        import_torch(ids, (torch.ones(3),))
    generated = keeper(lambda self, x: x * next(self.ids), ids=(n for n in range(9)))
    with pytest.raises(DlcError, match="DLC0215.*ids' .an iterator"):
        import_torch(generated, (torch.ones(3),))
    for draws in (lambda self, x: x * random.random(), lambda self, x: x * float(np.random.rand())):  # noqa: NPY002
        with pytest.raises(DlcError, match="DLC0216.*random"):
            import_torch(keeper(draws), (torch.ones(3),))


def test_files_that_a_model_holds_stay_open(tmp_path):
    """Python's way to pickle an object would wrap a subclass of a file, and close it with the wrapper."""

    class Log(io.TextIOWrapper):
        pass

    with Log(open(tmp_path / "log", "wb")) as log:
        import_torch(keeper(lambda self, x: x * 2 if self.log else x, log=log), (torch.ones(3),))
        gc.collect()
        log.write("still open")
    assert (tmp_path / "log").read_text() == "still open"


# --- where else a model may keep something ---------------------------------------------------------------------------


class Counts:
    """An iterator of the user's own."""

    def __init__(self):
        self.n = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        return self.n


class InSlots:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


class Named(dict):
    """A dict with an attribute."""


RECORD = Record()


class EqualToAll:
    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return True

    __hash__ = None


def numbers_of_an_iterator(self, x):
    return x * next(self.held)


def attribute_of_an_object(self, x):
    self.held.n += 1  # here
    return x * self.held.n  # there


def attribute_behind_a_weak_reference(self, x):
    self.held().n += 1  # here
    return x * self.held().n  # there


def function_with_an_attribute(x):
    function_with_an_attribute.n += 1  # here
    return x * function_with_an_attribute.n  # there


function_with_an_attribute.n = 0


def attribute_of_a_function(self, x):
    return function_with_an_attribute(x)


def variable_of_another_file(self, x):
    torch_counts.COUNT += 1  # here
    return x * torch_counts.COUNT  # there


def function_of_another_file(self, x):
    return torch_counts.counted(x)


def function_of_a_file_imported_here(self, x):
    from tests.frontend.torch_counts import counted

    return counted(x)


@contextlib.contextmanager
def numbered():
    global TOTAL
    TOTAL += 1  # here
    yield TOTAL


def context_manager_of_a_function(self, x):
    with numbered() as n:
        return x * n


def variable_by_its_name(self, x):
    globals()["TOTAL"] += 1
    return x * TOTAL


def default_type(self, x):
    y = x * 2 if torch.ones(1).dtype == torch.float32 else x
    torch.set_default_dtype(torch.float64)
    return y


def forward_is_replaced(self, x):
    self.forward = self.helped  # here
    return x


def children_swap(self, x):
    self.a, self.b = self.b, self.a
    return self.a(x)


def child_is_removed(self, x):
    if not hasattr(self, "a"):
        return x
    y = self.a(x)
    del self.a
    return y


def buffer_of_the_first_input(self, x):
    if not hasattr(self, "first"):
        self.register_buffer("first", x.clone())
    return x - self.first


def hook_for_later_calls(self, x):
    y = self.a(x)
    if len(self.a._forward_hooks) == 0:
        self.a.register_forward_hook(lambda module, args, y: y * 2)
    return y


def deque_grows(self, x):
    self.items.append(1)  # here
    return x * 2 if len(self.items) > 3 else x


def counts_by_key(self, x):
    self.items["a"] += 1  # here
    return x * self.items["a"]


def list_inside_grows(self, x):
    self.items["a"].append(1)
    return x * 2 if len(self.items["a"]) > 3 else x


def object_equal_to_the_last(self, x):
    self.held = EqualToAll(self.held.n + 1)  # here
    return x * 2 if self.held.n > 3 else x


KEPT_ELSEWHERE = [
    (numbers_of_an_iterator, {"held": Counts()}), (attribute_of_an_object, {"held": InSlots()}),
    (attribute_of_an_object, {"held": SimpleNamespace(n=0)}), (attribute_of_an_object, {"held": Named()}),
    (attribute_of_an_object, {"held": threading.local()}), (attribute_behind_a_weak_reference, {"held": weakref.ref(RECORD)}),
    (function_of_another_file, {}), (function_of_a_file_imported_here, {}), (attribute_of_a_function, {}),
    (context_manager_of_a_function, {}), (variable_of_another_file, {}), (variable_by_its_name, {}), (default_type, {}), (forward_is_replaced, {}),
    (children_swap, {"a": nn.ReLU(), "b": nn.Tanh()}), (child_is_removed, {"a": nn.ReLU()}),
    (buffer_of_the_first_input, {}), (hook_for_later_calls, {"a": nn.ReLU()}),
    (deque_grows, {"items": deque()}), (counts_by_key, {"items": Counter()}),
    (list_inside_grows, {"items": defaultdict(list)}), (object_equal_to_the_last, {"held": EqualToAll(0)}),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "attributes"), KEPT_ELSEWHERE, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_kept_elsewhere_is_found_and_put_back(forward, attributes):
    if isinstance(attributes.get("held"), (Named, threading.local)):
        attributes["held"].n = 0
    model = keeper(forward, **attributes)
    before = kept_anywhere(model)
    with pytest.raises(DlcError, match="DLC0215.*in place, and a compiled call leaves nothing behind") as caught:
        import_torch(model, (torch.tensor([1.0, 2.0, -0.5]),))
    here = line(forward, "here")
    assert here is None or str(caught.value.loc) == here, caught.value.render()
    assert kept_anywhere(model) == before


def kept_anywhere(model):
    held = getattr(model, "held", None)
    record = held() if isinstance(held, weakref.ref) else held
    names = [list(m._modules.items()) + list(m._buffers) + list(m._forward_hooks) for m in model.modules()]
    seen = getattr(record, "n", None), str(getattr(model, "items", None)), "forward" in vars(model), names
    return *seen, torch.get_default_dtype(), TOTAL, torch_counts.COUNT, function_with_an_attribute.n


def longer(v):
    v.append(1)
    return len(v)


def set_once_more(v):
    v.set(v.get() + 1)
    return v.get()


VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize(
    ("what", "held", "used", "shown"),
    [
        ("an iterator", lambda: zip([1.0] * 9, [3.0] * 9, strict=True), lambda v: next(v)[0], None),
        ("an iterator", lambda: map(float, [1] * 9), next, None),
        ("an iterator", lambda: itertools.count(1).__next__, lambda v: v(), None),
        ("an iterator", lambda: begun(), next, None),
        ("an array of NumPy", lambda: np.zeros(2), lambda v: v.__iadd__(1).sum().item(), lambda v: v.tolist()),
        ("a bytearray", lambda: bytearray(2), longer, bytes),
        ("an array", lambda: array.array("i", [1]), longer, list),
        ("'VARIABLE'", lambda: VARIABLE, set_once_more, lambda v: v.get()),
        ("random", lambda: random.Random(0), lambda v: v.random(), lambda v: v.getstate()),
        ("random", lambda: np.random.default_rng(0), lambda v: v.random(), lambda v: str(v.bit_generator.state)),
    ],
)
def test_what_goes_on_from_call_to_call(what, held, used, shown, decides):
    def forward(self, x):
        y = x * used(self.held)
        return -y if decides and y.sum() > 0 else y

    model = keeper(forward, held=held())
    before = shown and shown(model.held)
    with pytest.raises(DlcError, match=f"DLC021[56].*{what}"):
        import_torch(model, (torch.ones(3),))
    assert shown is None or shown(model.held) == before


class Bag:
    """A container of the user's own, whose methods Python calls: they are not rewritten."""

    def __init__(self):
        self.items = []

    @property
    def size(self):
        return len(self.items)

    def __len__(self):
        return len(self.items)

    def __bool__(self):
        return len(self.items) > 3

    def __contains__(self, item):
        return len(self.items) > 3

    def __add__(self, other):
        return other * (2 if len(self.items) > 3 else 1)

    def __getattr__(self, name):
        return len(self.__dict__["items"])

    def __enter__(self):
        return len(self.items)

    def __exit__(self, *raised):
        return None

    def steps(self):
        yield len(self.items) > 3


def entered(held):
    with held as n:
        return n > 3


class Made:
    """What a model makes in its first call."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def counts_in_it(made, x):
    made.n += 1
    return x * 2 if made.n > 3 else x


def adds_to_its_list(made, x):
    made.items["a"].append(1)
    return x * 2 if len(made.items["a"]) > 3 else x


def sets_once_more(made, x):
    made.n = getattr(made, "n", 0) + 1
    return x * 2 if made.n > 3 else x


FIRST_MADE = [
    (lambda x: Made(n=0), counts_in_it), (lambda x: Made(inner=Made(n=0)), lambda made, x: counts_in_it(made.inner, x)),
    (lambda x: [Made(n=0)], lambda made, x: counts_in_it(made[0], x)), (lambda x: Made(items={"a": []}), adds_to_its_list),
    (lambda x: Made(), sets_once_more), (lambda x: Made(t=x * 1), lambda made, x: x - made.t),
    (lambda x: Made(inner=Record()), lambda made, x: counts_in_it(made.inner, x)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "use"), FIRST_MADE)
def test_objects_that_the_first_call_makes_are_followed(make, use):
    def forward(self, x):
        if self.made is None:
            self.made = make(x)  # here
        return use(self.made, x)

    model = keeper(forward, made=None)
    with pytest.raises(DlcError, match="DLC0215.*'Forward.made'") as caught:
        import_torch(model, (torch.ones(3),))
    assert str(caught.value.loc) == line(forward, "here") and model.made is None


@pytest.mark.parametrize("decides", [False, True])
def test_buffer_that_the_first_call_registers(decides):
    def forward(self, x):
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.triu(torch.ones(3, 3)), persistent=False)
        y = x @ self.mask
        return -y if decides and y.sum() > 0 else y

    model = keeper(forward)
    imported = import_torch(model, (torch.ones(3),))
    assert not hasattr(model, "mask")
    np.testing.assert_allclose(run(imported, (torch.ones(3),))[0], model(torch.ones(3)).numpy())


@pytest.mark.parametrize("make", [lambda: Made(t=torch.arange(3.0)), lambda: nn.Threshold(0.5, 0.0)])
def test_objects_that_stay_as_the_first_call_makes_them(make):
    def forward(self, x):
        if self.made is None:
            self.made = make()
        return self.made(x) if isinstance(self.made, nn.Module) else x * self.made.t

    model = keeper(forward, made=None)
    imported = import_torch(model, (torch.ones(3),))
    assert model.made is None and "made" in vars(model)
    for x in (torch.ones(3), -torch.ones(3)):
        np.testing.assert_allclose(run(imported, (x,))[0], model(x).numpy())


class Reads:
    """A descriptor that counts how often it is read."""

    n = 0

    def __get__(self, owner, kind):
        self.n += 1
        return self.n


def times(self, x, by):
    return x * by


class Described(nn.Module):
    reads = Reads()
    doubled = functools.partialmethod(times, by=2)

    def forward(self, x):
        return self.doubled(x)


class Counted(Described):
    def forward(self, x):
        return x * self.reads


def test_what_a_class_gives_when_it_is_asked_is_no_state_but_what_it_counts_is():
    imported = import_torch(Described().eval(), (torch.ones(3),))
    assert imported.forgotten == () and run(imported, (torch.ones(3),))[0].tolist() == [2.0] * 3
    with pytest.raises(DlcError, match="DLC0215.*'Reads.n'"):
        import_torch(Counted().eval(), (torch.ones(3),))
    assert Reads.n == vars(Described)["reads"].n == 0


@pytest.mark.parametrize("decides", [False, True])
def test_tensors_get_no_other_data(decides):
    def forward(self, x):
        self.layer.weight.data = self.layer.weight.data + 1
        y = self.layer(x)
        return -y if decides and y.sum() > 0 else y

    model = keeper(forward, layer=nn.Linear(3, 3))
    before = model.layer.weight.clone()
    with pytest.raises(DlcError, match="DLC0215.*the data of a tensor"):
        import_torch(model, (torch.ones(3),))
    torch.testing.assert_close(model.layer.weight, before)


def test_lines_of_a_file_that_the_model_holds(tmp_path):
    def forward(self, x):
        return x * int(self.held.readline())

    (tmp_path / "numbers").write_text("1\n2\n3\n")
    with open(tmp_path / "numbers") as held:
        with pytest.raises(DlcError, match="DLC0215.*'Forward.held' .an iterator"):
            import_torch(keeper(forward, held=held), (torch.ones(3),))


@pytest.mark.parametrize("holder", [frozenset, lambda items: dict.fromkeys(items, 1)])
def test_objects_in_frozen_sets_and_keys(holder):
    def forward(self, x):
        found = next(iter(self.held))
        found.n += 1  # here
        return x * 2 if found.n > 3 else x

    with pytest.raises(DlcError, match="DLC0215.*'Made.n'") as caught:
        import_torch(keeper(forward, held=holder([Made(n=0)])), (torch.ones(3),))
    assert str(caught.value.loc) == line(forward, "here")


LOOKED_AT = [
    lambda held: held.size > 3, lambda held: len(held) > 3, bool, lambda held: 1 in held, lambda held: (held + 1) > 1,
    lambda held: held.length > 3, entered, lambda held: next(held.steps()), lambda held: held.items.__len__() > 3,
]  # fmt: skip


@pytest.mark.parametrize("looked", LOOKED_AT)
def test_code_that_is_not_rewritten_takes_no_length_of_a_list_that_grows(looked):
    def forward(self, x):
        self.bag.items.append(1)  # here
        return x * 2 if looked(self.bag) else x

    with pytest.raises(DlcError, match="DLC0215.*'Bag.items'") as caught:
        import_torch(keeper(forward, bag=Bag()), (torch.ones(3),))
    assert str(caught.value.loc) == line(forward, "here")


def test_size_of_a_queue_of_the_standard_library():
    def forward(self, x):
        self.jobs.put(1)
        return x * 2 if self.jobs.qsize() > 3 else x

    with pytest.raises(DlcError, match="DLC0215.*'Queue.queue'"):
        import_torch(keeper(forward, jobs=Queue()), (torch.ones(3),))


@pytest.mark.parametrize("seen", [[], deque(maxlen=2)])
def test_hook_adds_to_a_list(seen):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda module, args, y: seen.append(y))
    imported = import_torch(model, (torch.ones(3),))
    assert imported.forgotten == ("seen",) and len(seen) == 0


def test_containers_that_load_what_is_read_of_them_are_not_read():
    class Lazy(dict):
        def items(self):
            raise ValueError("not to be loaded")

        values = keys = items

    held = Lazy(n=2)
    imported = import_torch(keeper(lambda self, x: x * self.held["n"], held=held), (torch.ones(3),))
    assert run(imported, (torch.ones(3),))[0].tolist() == [2.0] * 3

    def forward(self, x):
        self.held["n"] = self.held["n"] + 1
        return x * self.held["n"]

    with pytest.raises(DlcError, match="DLC0215.*'Forward.held' .a Lazy"):
        import_torch(keeper(forward, held=held), (torch.ones(3),))


def begun():
    """A generator that is at the same line after each step, with other variables."""

    def numbers():
        n = 0.0
        while True:
            n += 1
            yield n

    made = numbers()
    next(made)
    return made


@functools.lru_cache
def triangle(n):
    return torch.triu(torch.ones(n, n))


@pytest.mark.parametrize("decides", [False, True])
def test_caches_of_functions_keep_none_of_the_tensors_of_tracing(decides):
    def forward(self, x):
        y = x @ triangle(x.shape[0])
        return -y if decides and y.sum() > 0 else y

    model = keeper(forward)
    triangle.cache_clear()
    imported = import_torch(model, (torch.ones(3),))
    np.testing.assert_allclose(run(imported, (torch.ones(3),))[0], model(torch.ones(3)).numpy())


class Remembers(nn.Module):
    @functools.lru_cache  # noqa: B019
    def of_method(self, n):
        return torch.triu(torch.ones(n, n))

    @staticmethod
    @functools.lru_cache
    def of_class(n):
        return torch.ones(n)

    def forward(self, x):
        return x @ self.of_method(x.shape[0]) + self.of_class(x.shape[0])


def test_caches_of_methods_keep_none_of_the_tensors_of_tracing():
    model = Remembers().eval()
    imported = import_torch(model, (torch.ones(3),))
    np.testing.assert_allclose(run(imported, (torch.ones(3),))[0], model(torch.ones(3)).numpy())


def repeated(x, n):
    return x if n == 0 or x.sum() > 100 else repeated(x + 1, n - 1)


def test_function_that_calls_itself_by_its_global_name():
    imported = import_torch(keeper(lambda self, x: repeated(x, 3)), (torch.ones(3),))
    assert run(imported, (torch.ones(3),))[0].tolist() == [4.0] * 3


# --- what is compiled ------------------------------------------------------------------------------------------------


def only_counted(self, x):
    self.n += 1
    return x * 2


def only_counted_on_data(self, x):
    self.n += 1
    if x.sum() > 0:
        self.positive += 1
        return x * 2
    return x


def wraps_around(self, x):
    self.n += 1
    if self.n >= 100:
        self.n = 0
    return x * 2


def kept_for_the_caller(self, x):
    self.last = x * 2
    self.items.append(x)
    return self.last + 1


def set_before_it_is_read(self, x):
    self.n = 0
    for _ in range(3):
        self.n += 1
    return x * self.n


def settles(self, x):
    self.width = min(self.width, x.shape[0])
    return x.reshape(-1, self.width).sum(-1, keepdim=True) + x


def mask_is_made_once(self, x):
    if self.mask is None or self.mask.shape[0] != x.shape[0]:
        self.mask = torch.triu(torch.ones(x.shape[0], x.shape[0]), 1)
    return x @ self.mask


def table_is_made_once(self, x):
    n = x.shape[0]
    if n not in self.tables:
        table = torch.zeros(n)
        table[0::2] = torch.arange(0, n, 2).float().sin()
        self.tables[n] = table
    return x + self.tables[n]


def table_is_made_once_beside_a_decision(self, x):
    y = table_is_made_once(self, x)
    return y if y.sum() > 0 else -y


def weight_is_kept_once(self, x):
    if self.squared is None:
        self.squared = self.layer.weight * self.layer.weight
    return x @ self.squared


COMPILED = {
    f.__name__: (f, attributes, left)
    for f, attributes, left in [
        (only_counted, {"n": 0}, ["n"]), (only_counted_on_data, {"n": 0, "positive": 0}, ["n", "positive"]),
        (wraps_around, {"n": 0}, ["n"]), (kept_for_the_caller, {"items": []}, ["items", "last"]),
        (set_before_it_is_read, {"n": 0}, []), (settles, {"width": 7}, []), (mask_is_made_once, {"mask": None}, []),
        (table_is_made_once, {"tables": {}}, []), (table_is_made_once_beside_a_decision, {"tables": {}}, []),
        (weight_is_kept_once, {"squared": None, "layer": nn.Linear(4, 4)}, []),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_calls_after_the_first_are_as_in_eager(name):
    forward, attributes, left = COMPILED[name]
    model = keeper(forward, **attributes)
    before = {k: str(v) for k, v in model.__dict__.items()}
    imported = import_torch(model, (torch.tensor([1.0, 2.0, -0.5, 1.0]),))
    assert {k: str(v) for k, v in model.__dict__.items()} == before
    assert sorted(imported.forgotten) == sorted(f"{type(model).__name__}.{n}" for n in left)
    for seed in range(4):
        x = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(run(imported, (x,))[0], model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_weight_norm_sets_an_attribute_in_every_call():
    with pytest.warns(FutureWarning):
        layer = torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 3))
    model = nn.Sequential(layer, nn.ReLU()).eval()
    x = torch.randn(1, 2, 8)
    imported = import_torch(model, (x,))
    assert imported.forgotten == ()
    np.testing.assert_allclose(run(imported, (x,))[0], model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_computed_of_the_first_input_is_not_taken_for_all():
    def kept_from_the_input(self, x):
        if self.scale is None:
            self.scale = x.abs().max()
        return x / self.scale

    with pytest.raises(DlcError, match="DLC0215.*'Kept_From_The_Input.scale'"):
        import_torch(keeper(kept_from_the_input, scale=None), (torch.ones(3),))


def test_kept_tensor_that_is_written_is_refused():
    def written(self, x):
        if self.total is None:
            self.total = torch.zeros(3)
        self.total += 1
        return x + self.total

    with pytest.raises(DlcError, match="DLC0215.*'Written.total'"):
        import_torch(keeper(written, total=None), (torch.ones(3),))


def test_objects_that_are_made_in_the_call_are_nobodys_state():
    def local(self, x):
        state = SimpleNamespace(n=0, record=Record())
        for _ in range(3):
            state.n += 1
            state.record.n += state.n
        return x * state.record.n

    imported = import_torch(keeper(local), (torch.ones(3),))
    assert imported.forgotten == () and run(imported, (torch.ones(3),))[0].tolist() == [6.0] * 3


@pytest.mark.parametrize("decides", [False, True])
def test_input_that_is_written_is_refused_with_what_to_write_instead(decides):
    class Plain(nn.Module):
        def forward(self, x):
            x[0] = 5.0  # here
            return x * 2

    class Decides(nn.Module):
        def forward(self, x):
            x.add_(1)  # here
            return x * 2 if x.sum() > 0 else x

    model = Decides() if decides else Plain()
    with pytest.raises(DlcError, match="DLC0215.*its input 'x' in place") as caught:
        import_torch(model.eval(), (torch.ones(3),))
    assert str(caught.value.loc).split(" ")[0] == line(type(model).forward, "here")
    assert "x = x.clone()" in str(caught.value.help)


@pytest.mark.parametrize("decides", [False, True])
def test_containers_of_the_caller_are_left_alone(decides):
    def fills(self, batch):
        batch["y"] = batch["x"] * 2
        if not decides or batch["y"].sum() > 0:
            return batch["y"] + 1
        return batch["x"]

    given = {"x": torch.ones(3)}
    imported = import_torch(keeper(fills), (given,))
    assert list(given) == ["x"]
    assert run(imported, (given,))[0].tolist() == [3.0] * 3


def test_recurrent_layers_list_their_weights():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    for model in (Tagger().eval(), nn.Sequential(nn.GRU(3, 4)).eval(), nn.LSTM(3, 4).eval()):
        before = model(torch.ones(2, 5, 3))
        for _ in range(2):  # tracing leaves none of its own tensors in the lists
            assert import_torch(model, (torch.ones(2, 5, 3),)).forgotten == ()
        torch.testing.assert_close(model(torch.ones(2, 5, 3)), before)


class Watcher(threading.Thread):
    """What progress bars keep: a thread that counts by itself."""

    beats = 0


WATCHERS = [Watcher()]


def test_what_a_thread_changes_is_not_the_models():
    def forward(self, x):
        return x * len(WATCHERS)

    model = keeper(forward)
    kept = Kept.of(model)
    WATCHERS[0].beats += 1
    assert not kept.changes()
    WATCHERS.append(WATCHERS[0])
    assert [c.name for c in kept.changes()] == ["WATCHERS"]
    WATCHERS.pop()


LEVEL = 7


def raise_level():
    global LEVEL
    LEVEL += 1


def level_set_on_one_path(self, x):
    global LEVEL
    LEVEL = 0
    if x.sum() > 0:
        LEVEL = 5
    return x * LEVEL


def level_raised_in_steps(self, x):
    global LEVEL
    LEVEL = 0
    for row in x:
        if row.sum() > 3:
            LEVEL = LEVEL + 1
        else:
            continue
        break
    return x * LEVEL


def level_raised_by_a_helper_on_one_path(self, x):
    global LEVEL
    LEVEL = 1
    if x.sum() > 0:
        raise_level()
    return x * LEVEL


@pytest.mark.parametrize("forward", [level_set_on_one_path, level_raised_in_steps, level_raised_by_a_helper_on_one_path])
def test_global_variable_that_is_set_anew_in_each_call(forward):
    model = keeper(forward)
    imported = import_torch(model, (torch.ones(3, 4),))
    assert LEVEL == 7
    for x in (torch.ones(3, 4), -torch.ones(3, 4), torch.tensor([[0.0] * 4, [2.0] * 4, [-9.0] * 4])):
        np.testing.assert_array_equal(run(imported, (x,))[0], model(x).numpy())
        globals()["LEVEL"] = 7


def test_counter_beside_a_size_that_only_steps_ask_for():
    def forward(self, x, k):
        rows = [x, x]
        for _ in range(int(k)):
            for _row in x:
                rows[1] = x
        self.n += 1
        return rows[1]

    model = keeper(forward, n=0)
    shapes = ({0: torch.export.Dim("rows", min=2, max=16)}, None)
    imported = import_torch(model, (torch.ones(3, 4), torch.tensor(2)), dynamic_shapes=shapes)
    assert imported.forgotten == ("Forward.n",)
    np.testing.assert_array_equal(run(imported, (torch.ones(5, 4), torch.tensor(1)))[0], np.ones((5, 4)))
