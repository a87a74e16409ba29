"""Objects that code changes which is not rewritten: on one path of several that is refused, elsewhere it is Python's own business."""

from __future__ import annotations

import array
import contextvars
import functools
import inspect
import io
import queue
import random
import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from tests.frontend.torch_case import Fn, check, close, run

X, Y = torch.tensor([1.0, 2.0, -0.5]), torch.tensor([-1.0, -2.0, 0.5])

REFUSED: dict[str, Any] = {}
"""By name: the function that must be refused, at its line that ends in `# here`, and what of it is named."""


def refused(part: str) -> Any:
    def register(program: Any) -> Any:
        REFUSED[program.__name__] = program, part
        return program

    return register


@refused("'array' is changed by 'append' on one path only")
def array_in_an_arm(x):
    counts = array.array("i", [1])
    if x.sum() > 0:
        counts.append(2)  # here
    return x * len(counts)


@refused("'array' is changed by 'append' on one path only")
def number_into_an_array(x):
    counts = array.array("i", [1])
    if x.sum() > 0:
        counts.append(len(counts))  # here
    return x * sum(counts)


@refused("'StringIO' is changed by 'write' on one path only")
def text_in_an_arm(x):
    text = io.StringIO()
    if x.sum() > 0:
        text.write("more")  # here
    return x * len(text.getvalue())


@refused("'StringIO' is changed by 'write' on one path only")
def text_in_a_loop(x):
    text = io.StringIO()
    while x.sum() < 9:
        text.write("more")  # here
        x = x + 1
    return x * len(text.getvalue())


@refused("'StringIO' is changed by 'write' on one path only")
def text_before_the_loop_turns_out_to_be_data(x):
    text = io.StringIO()
    for _ in range(3):
        text.write("more")  # here
        x = x + 1
        if x.sum() > 5:
            break
    return x * len(text.getvalue())


@refused("'Queue' is changed by 'put' on one path only")
def queue_in_an_arm(x):
    waiting = queue.Queue()
    if x.sum() > 0:
        waiting.put(x)  # here
    return x * waiting.qsize()


@refused("'ModuleList' is changed by 'append' on one path only")
def layers_in_an_arm(x):
    layers = nn.ModuleList([nn.ReLU()])
    if x.sum() > 0:
        layers.append(nn.Tanh())  # here
    for layer in layers:
        x = layer(x)
    return x


@refused("'ModuleList' is changed by an assignment in place on one path only")
def layers_added_in_an_arm(x):
    layers = nn.ModuleList([nn.ReLU()])
    if x.sum() > 0:
        layers += [nn.Tanh()]  # here
    for layer in layers:
        x = layer(x)
    return x


@functools.lru_cache
def table(n):
    return tuple(range(n))


@refused("'_lru_cache_wrapper' is changed by 'table' on one path only")
def cache_in_an_arm(x):
    table.cache_clear()
    if x.sum() > 0:
        x = x * table(3)[1]  # here
    return x * table.cache_info().currsize


LEVEL: contextvars.ContextVar[int] = contextvars.ContextVar("LEVEL", default=1)


@refused("'ContextVar' is changed by 'set' on one path only")
def context_in_an_arm(x):
    LEVEL.set(1)
    if x.sum() > 0:
        LEVEL.set(3)  # here
    return x * LEVEL.get()


@refused("'torch.get_default_dtype()' is changed by 'set_default_dtype' on one path only")
def setting_in_an_arm(x):
    if x.sum() > 0:
        torch.set_default_dtype(torch.float64)  # here
    return x * torch.ones(3)


@refused("'bytearray' is changed by writing an item on one path only")
def byte_in_an_arm(x):
    counts = bytearray(b"\1\2")
    if x.sum() > 0:
        counts[0] = 7  # here
    return x * counts[0]


@refused("'ndarray' is changed by writing an item on one path only")
def element_of_numpy_in_an_arm(x):
    counts = np.ones(2)
    if x.sum() > 0:
        counts[0] = 7  # here
    return x * float(counts[0])


@refused("'ndarray' is changed by 'add' on one path only")
def result_of_numpy_in_an_arm(x):
    counts = np.ones(2)
    if x.sum() > 0:
        np.add(counts, 1, out=counts)  # here
    return x * float(counts[0])


@refused("'bytearray' is changed by deleting an item on one path only")
def byte_deleted_in_an_arm(x):
    counts = bytearray(b"\1\2")
    if x.sum() > 0:
        del counts[0]  # here
    return x * len(counts)


@refused("'Random' is changed by 'random' on one path only")
def random_number_in_an_arm(x):
    if x.sum() > 0:
        x = x * random.random()  # here
    return x


@refused("how far an iterator has come")
def iterator_used_up_in_an_arm(x):
    items = iter([1, 2])
    y = 0
    if x.sum() > 0:
        y = sum(items)  # here
    return x * y + len(list(items))


@refused("how far an iterator has come")
def iterator_spread_in_an_arm(x):
    items = iter([1, 2])
    n = 0
    if x.sum() > 0:
        n = len([*items])  # here
    return x * n + len(list(items))


@refused("how far an iterator has come")
def iterator_unpacked_in_an_arm(x):
    items = iter([1, 2])
    a = 0
    if x.sum() > 0:
        a, _b = items  # here
    return x * a + len(list(items))


@refused("how far an iterator has come")
def iterator_searched_in_an_arm(x):
    items = iter([1, 2])
    found = False
    if x.sum() > 0:
        found = 1 in items  # here
    return x * found + len(list(items))


@refused("how far an iterator has come")
def iterator_added_to_a_list_in_an_arm(x):
    items, known = iter([1, 2]), [0]
    if x.sum() > 0:
        known += items  # here
    return x + len(list(items))


@refused("how far an iterator has come")
def iterator_that_extends_a_list_in_an_arm(x):
    items, known = iter([1, 2]), [0]
    if x.sum() > 0:
        known.extend(items)  # here
    return x + len(list(items))


@refused("how far an iterator has come")
def iterator_over_a_slice_in_an_arm(x):
    items, known = iter([1, 2]), [0]
    if x.sum() > 0:
        known[:] = items  # here
    return x + len(list(items))


@refused("how far an iterator has come")
def iterator_summed_by_a_comprehension_in_an_arm(x):
    items, n = iter([1, 2]), 0
    if x.sum() > 0:
        n = sum(v for v in items)  # here
    return x * n + len(list(items))


@refused("a loop over it ends early where data say")
def iterator_after_a_loop_that_data_end(x):
    items = iter([1, 2, 3])
    for n in items:
        if x.sum() > n:
            break
    return x * len(list(items))  # here


@refused("a loop over it ends early where data say")
def iterator_beneath_another_after_a_loop_that_data_end(x):
    items = iter([1, 2, 3])
    for n, _item in enumerate(items):
        if x.sum() > n:
            break
    return x * next(items, 9)  # here


@refused("a dict of 2")
def order_of_a_dict(x):
    parts = {"a": 1.0, "b": 2.0}
    if x.sum() > 0:
        parts = {"b": 2.0, "a": 1.0}
    return x * next(iter(parts.values()))  # here


class Named:
    def __init__(self, name, scale):
        self.name, self.scale = name, scale

    def __eq__(self, other):
        return self.name == other.name


@refused("a Named on one path and a Named on the other")
def objects_that_their_class_calls_equal(x):
    chosen = Named("a", 1)
    if x.sum() > 0:
        chosen = Named("a", 5)
    return x * chosen.scale  # here


@refused("OrderedDict")
def order_that_an_arm_changes(x):
    parts = OrderedDict(a=1.0, b=2.0)
    if x.sum() > 0:
        parts.move_to_end("a")
    return x * next(iter(parts.values()))  # here


@pytest.mark.parametrize("name", REFUSED)
def test_change_on_one_path_is_refused_at_its_line(name):
    program, part = REFUSED[name]
    before = torch.get_default_dtype()
    try:
        with pytest.raises(DlcError) as caught:
            import_torch(Fn(program).eval(), (X,))
    finally:
        torch.set_default_dtype(before)
    error = caught.value
    assert part in str(error), str(error)
    lines, first = inspect.getsourcelines(program)
    here = next(n for n, text in enumerate(lines) if "# here" in text)
    assert str(error.loc).split(" ")[0] == f"test_torch_effects.py:{first + here}", str(error)
    assert error.help


def range_of_data(x):
    n = int(x.argmax()) + 1
    if 2 in range(n):
        return x
    if 1 in range(n, -1, -1) and int(x.argmin()) not in range(1, n + 2):
        return -x
    return x * 2


def test_membership_in_a_range_of_data_is_a_comparison():
    check(range_of_data, X, others=[(v,) for v in (Y, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0]))])


def recursion(x):
    def halved(v, n):
        if n <= 0:
            return v
        return halved(v / 2, n - 1)

    return halved(x, int(x.argmax()))


def test_recursion_as_deep_as_data_say_is_refused():
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(recursion).eval(), (X,))
    error = caught.value
    assert error.code == "DLC0223" and "how often 'halved' calls itself depends on data" in str(error), str(error)
    assert "while" in error.help


class Record:
    pass


def attribute_set_in_steps(x):
    record = Record()
    while x.sum() < 9:
        x = x + 1
        record.last = x
    return record.last


def test_attribute_that_steps_set_is_not_set_before():
    with pytest.raises(DlcError, match=r"is not set before it and a tensor float32\[3\] after a step"):
        import_torch(Fn(attribute_set_in_steps).eval(), (X,))


class Halves(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x[: x.shape[0] // 2].sum() + x
        return x


def test_what_the_recording_finds_is_told_where_torch_export_stops_at_a_decision():
    batch = torch.export.Dim("batch", min=2, max=16)
    with pytest.raises(DlcError) as caught:
        import_torch(Halves().eval(), (torch.ones(4),), dynamic_shapes=({0: batch},))
    assert "Constraints violated (batch)" in str(caught.value) and "Could not guard" not in str(caught.value)


# --- what is no change, or no other path -----------------------------------------------------------------------------


def made_there(x):
    n = 0
    if x.sum() > 0:
        text, counts, waiting = io.StringIO(), array.array("i"), queue.Queue()
        for word in ("a", "b"):
            text.write(word)
            counts.append(len(text.getvalue()))
            waiting.put(counts)
        layers = nn.ModuleList([nn.ReLU()])
        layers.append(nn.Tanh())
        for layer in layers:
            x = layer(x)
        n = sum(counts) + waiting.qsize()
    return x + n


def looked_at(x):
    text, counts, options = io.StringIO("abc"), array.array("i", [1, 2]), {"a": 1}
    names, found = re.compile("b+"), re.match("a(b+)", "abb")
    layers, level = nn.ModuleList([nn.ReLU(), nn.Tanh()]), LEVEL.get()
    if x.sum() > 0:
        x = x * len(text.getvalue()) + counts.index(2) + options.get("a", 2) + level
        x = x + len(found.group(1)) + len(names.findall("abbb")) + ",".join(options).count("a")
        for name, layer in layers.named_children():
            x = layer(x) + int(name)
    return x


def changed_on_every_path(x):
    text, items = io.StringIO(), iter([1, 2, 3])
    for word in ("a", "bc"):
        text.write(word)
        x = x * next(items)
    return x * len(text.getvalue()) if x.sum() > 0 else x


class Stack:
    """A container of the model's own, whose methods are rewritten."""

    def __init__(self):
        self.items = {0: 1.0}

    def __setitem__(self, key, value):
        self.items[key] = value

    def __delitem__(self, key):
        del self.items[key]


def container_of_the_models_own(x):
    stack = Stack()
    stack.items[1] = 4.0
    if x.sum() > 0:
        stack[0] = 3.0
    else:
        stack[0] = x.sum().item()
    return x * stack.items[0]


@pytest.mark.parametrize("program", [made_there, looked_at, changed_on_every_path, container_of_the_models_own])
def test_other_uses_are_recorded(program):
    check(program, X, others=[(Y,)])


@pytest.mark.parametrize("make", [lambda: Counter("ppq"), lambda: OrderedDict(p=2, q=1), lambda: defaultdict(int, p=2)])
def test_entries_of_kinds_of_dicts_that_an_arm_changes(make):
    class Counts(nn.Module):
        def forward(self, x):
            counts = make()
            if x.sum() > 0:
                counts["p"] += 2
            return x + counts["p"]

    model = Counts()
    imported = import_torch(model, (torch.ones(4),))
    for x in (torch.ones(4), -torch.ones(4)):
        close(run(imported, (x,))[0], model(x))


# --- the model's own classes -----------------------------------------------------------------------------------------


class Doubling:
    """Attributes that code stands behind: of a property, of a descriptor, of the class."""

    class Halved:
        def __get__(self, owner, kind=None):
            return owner.kept

        def __set__(self, owner, value):
            owner.kept = value / 2

    half = Halved()

    def __init__(self, made=()):
        self.held = self.kept = 1
        for other in made:
            other.append(1)

    @property
    def twice(self):
        return self.held

    @twice.setter
    def twice(self, value):
        self.held = value * 2 if value > 0 else value

    @twice.deleter
    def twice(self):
        self.held = 9

    def __setattr__(self, name, value):
        super().__setattr__(name, value + 1 if name == "more" else value)


def property_in_an_arm(x):
    record, name = Doubling(), "twice"
    if x.sum() > 0:
        record.twice = 5
        setattr(record, name, record.twice + 1)
    return x * record.twice


def property_raised_in_an_arm(x):
    record = Doubling()
    for value in x:
        if value > 0:
            record.twice += value.item()
    return x * record.twice


def property_deleted_in_an_arm(x):
    record = Doubling()
    if x.sum() > 0:
        del record.twice
    return x * record.twice


def descriptor_in_an_arm(x):
    record = Doubling()
    if x.sum() > 0:
        record.half = 5
    return x * record.half


def attribute_by_the_class_in_an_arm(x):
    record = Doubling()
    record.more = 1
    if x.sum() > 0:
        record.more = 5
    return x * record.more


def object_that_is_made_in_an_arm_changes_others(x):
    made = []
    if x.sum() > 0:
        Doubling([made])
    return x * len(made)


def class_of_the_function(x):
    made = []

    class Counter:
        def __init__(self):
            self.n = 0
            made.append(1)

        def count(self, y):
            self.n += 1 if y.sum() > 3 else 2
            made.append(2)

    counter = Counter()
    if x.sum() > 0:
        counter.count(x)
    return x * counter.n + len(made)


class Entered:
    def __init__(self):
        self.n = 0

    def __enter__(self):
        self.n += 1
        return self

    def __exit__(self, *error):
        self.n += 10


def context_entered_in_an_arm(x):
    context = Entered()
    if x.sum() > 0:
        with context as entered:
            x = x * entered.n
    return x * context.n


def item_by_its_method_in_an_arm(x):
    parts = {"a": 1}
    if x.sum() > 0:
        parts.__setitem__("a", 5)
    return x * parts["a"]


OWN = [
    property_in_an_arm, property_raised_in_an_arm, property_deleted_in_an_arm, descriptor_in_an_arm,
    attribute_by_the_class_in_an_arm, object_that_is_made_in_an_arm_changes_others, class_of_the_function,
    context_entered_in_an_arm, item_by_its_method_in_an_arm,
]  # fmt: skip


@pytest.mark.parametrize("program", OWN)
def test_what_classes_do_in_an_arm(program):
    check(program, X, others=[(Y,), (2 * X,)])
