"""What two arms leave as one: objects with attributes beside their fields and elements, objects that are only equal, members of enums."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import types
from collections import OrderedDict, UserList, defaultdict, deque

import pytest
import torch

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from tests.frontend.torch_case import Fn, check

X, Y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0, 0.5])
COMPILED, REFUSED = {}, {}


def compiled(program):
    COMPILED[program.__name__] = program
    return program


def refused(program):
    REFUSED[program.__name__] = program
    return program


# --- attributes ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Noted:
    x: torch.Tensor
    n = 7

    def __post_init__(self):
        self.n = 8
        self.more = self.x * 2


@compiled
def attributes_beside_fields(x):
    if x.sum() > 0:
        made = Noted(x)
    else:
        made = Noted(x * 3)
    return made.x * made.n + made.more * len(vars(made))


@refused
def attribute_on_one_path(x):
    made = Noted(x)
    if x.sum() > 0:
        made = Noted(x)
        made.other = 1
    return made.x


class WithSlot:
    __slots__ = ("n",)


@dataclasses.dataclass
class InSlot(WithSlot):
    x: torch.Tensor


@compiled
def slot_of_a_base(x):
    if x.sum() > 0:
        made = InSlot(x)
        made.n = 1
    else:
        made = InSlot(x)
        made.n = 2
    return made.x * made.n


class Named(dict):
    n = 0


@compiled
def attribute_of_a_dict(x):
    if x.sum() > 0:
        made = Named(a=x)
        made.n = 1
    else:
        made = Named(a=x)
        made.n = 2
    return made["a"] * made.n


@compiled
def attribute_that_an_arm_changes(x):
    one, other = Named(a=x), Named(a=x * 2)
    one.n, other.n = 2, 4
    if x.sum() > 0:
        one.n = 3
        made = one
    else:
        made = other
    return made["a"] * made.n


class Pair(collections.namedtuple("Pair", "a b")):
    def __new__(cls, a):
        return super().__new__(cls, a, a * 2)


@compiled
def named_tuple_with_a_constructor(x):
    pair = Pair(x) if x.sum() > 0 else Pair(x * 3)
    return pair.a + pair.b


@refused
def factories_of_a_defaultdict(x):
    counts = defaultdict(lambda: 1, a=x) if x.sum() > 0 else defaultdict(lambda: 2, a=x)
    return counts["a"] * counts["b"]


class Counting(OrderedDict):
    made = 0

    def __init__(self, **items):
        Counting.made += 1
        super().__init__(**items)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@compiled
def copying_calls_nothing(x):
    Counting.made = 0
    out = Counting(a=x) if x.sum() > 0 else Counting(a=x * 2)
    out["a"] = out["a"] + 1
    return out["a"] + out.a + Counting.made


# --- objects that are equal, and others ------------------------------------------------------------------------------

PAIRS = {
    "namespace": (lambda: types.SimpleNamespace(n=1), lambda v: setattr(v, "n", 2), lambda v: v.n),
    "arguments": (lambda: argparse.Namespace(n=1), lambda v: setattr(v, "n", 2), lambda v: v.n),
    "user_list": (lambda: UserList([1]), lambda v: v.append(2), len),
    "deque": (lambda: deque([1]), lambda v: v.append(2), len),
    "set": (lambda: {1}, lambda v: v.add(2), len),
    "bytearray": (lambda: bytearray(b"a"), lambda v: v.append(2), len),
    "chain_map": (lambda: collections.ChainMap({"a": 1}), lambda v: v.update(b=2), len),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_of_two_equal_objects_that_is_changed(name):
    make, change, look = PAIRS[name]

    def program(x):
        one, other = make(), make()
        some = one if x.sum() > 0 else other
        change(some)
        return x + look(one) * 10 + look(other) * 100

    with pytest.raises(DlcError, match="DLC022[18]"):
        import_torch(Fn(program).eval(), (X,))


class Tagged(str):
    pass


@compiled
def equal_texts_with_attributes(x):
    mode = Tagged("a")
    mode.n = 1
    if x.sum() > 0:
        mode = Tagged("a")
        mode.n = 2
    return x * mode.n


@compiled
def equal_sets_and_queues(x):
    seen, queue = {1, 2}, deque([x], maxlen=2)
    if x.sum() > 0:
        seen = {1, 2}
        queue.append(x * 2)
        queue.append(x * 3)
    else:
        queue.append(x * 4)
    seen.add(3)
    queue.append(x)
    return x * len(seen) + queue[0]


@compiled
def configuration(x):
    config = types.SimpleNamespace(scale=1.0, k=2)
    if x.sum() > 0:
        config.scale = 3.0
    else:
        config = types.SimpleNamespace(scale=x.max(), k=3)
    return x * config.scale + config.k


@refused
def two_names_of_one_list_on_one_path(x):
    if x.sum() > 0:
        one = [1]
        two = one
    else:
        one, two = [1], [1]
    one.append(5)
    return x * len(two)


@refused
def list_that_is_another_by_a_third(x):
    a, b, c = [1], [1], [1]
    first = a if x.sum() > 0 else b
    second = first if x.max() > 1 else c
    second.append(1)
    return x * len(a)


# --- enums -----------------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    A = 1
    B = 2

    def apply(self, x):
        return x * 2 if self is Mode.A else x * 3


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@compiled
def member_of_an_enum(x):
    mode = Mode.A if x.sum() > 0 else Mode.B
    match mode:
        case Mode.A:
            x = x + 1
        case Mode.B:
            x = x - 1
    if mode is Mode.B and mode.name == "B":
        x = x * mode.value
    return mode.apply(x) * {Mode.A: 5.0, Mode.B: 7.0}[mode]


@compiled
def flags(x):
    rights = Rights.READ
    if x.sum() > 0:
        rights = rights | Rights.WRITE
    return x * 2 if rights & Rights.WRITE else x


@compiled
def level_as_a_number(x):
    level = Level.LOW if x.sum() > 0 else Level.HIGH
    return x * level + x[level]


@refused
def level_as_a_member(x):
    level = Level.LOW if x.sum() > 0 else Level.HIGH
    return x * 2 if isinstance(level, Level) else x


# --- objects that show themselves alike ------------------------------------------------------------------------------


class Alike:
    def __init__(self, number):
        self.number = number

    def __repr__(self):
        return "Alike"


NEAR, REMOTE = Alike(1), Alike(2)


@refused
def element_of_a_set(x):
    found = {NEAR} if x.sum() > 0 else {REMOTE}
    return x * next(iter(found)).number


@refused
def key_of_a_dict(x):
    found = {NEAR: 1.0} if x.sum() > 0 else {REMOTE: 1.0}
    return x * 2 if NEAR in found else x * 3


@compiled
def keys_that_are_made_anew(x):
    found = {(1, "a"): x, frozenset((1, 2)): 2.0} if x.sum() > 0 else {(1, "a"): -x, frozenset((2, 1)): 3.0}
    return found[1, "a"] * found[frozenset((1, 2))]


# --- numbers beside objects ------------------------------------------------------------------------------------------


class One:
    def __eq__(self, other):
        return other == 1

    def __ne__(self, other):
        return not (other == 1)


@compiled
def number_beside_an_object(x):
    if int(x[0]) == One():
        x = x * 2
    return x + 10 if int(x[1]) != One() else x


@compiled
def names_of_the_users_own(x):
    left__1 = matched__1 = 5.0
    if x.sum() > 0 and (top := x.max()) > 1:
        x = x * top
    else:
        x = x - 1
    match int(x[0]):
        case 1:
            return x * left__1
        case _:
            return x * matched__1 + left__1


@compiled
def truth_by_match(x):
    match bool(x.sum() > 0):
        case True:
            return x * 2
        case False:
            return x * 3


@refused
def match_where_isinstance_is_another(x):
    isinstance = lambda *_: False  # noqa: E731
    match int(x[0]):
        case int():
            return x * 3
        case _:
            return x * 4 if isinstance(x, int) else x


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("example", [X, Y])
def test_result_is_eagers(name, example):
    check(COMPILED[name], example, others=[(X,), (Y,), (X * 4,), (-X,)])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_united_is_refused(name):
    with pytest.raises(DlcError, match="DLC022"):
        import_torch(Fn(REFUSED[name]).eval(), (X,))
