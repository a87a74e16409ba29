"""`any` and `all` look at their items no further than they must: what the others would change stays as it is."""

from __future__ import annotations

import pytest
import torch

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from tests.frontend.torch_case import Fn, check

X, Y, Z = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0, 2.0, -3.0])


def known(x):
    seen = []
    if x.sum() > 0 and any(seen.append(v) or v > 1 for v in (1, 2, 3)):
        x = x * 2
    return x + any(seen.append(v) or v > 1 for v in (1, 2, 3)) + len(seen)


def counts(x):
    seen = []

    def hit(v):
        seen.append(1)
        return v > 0

    return x * 2 + len(seen) if any(hit(v) for v in x) else x + len(seen)


class Logging:
    def __init__(self, v, log):
        self.v, self.log = v, log

    def __bool__(self):
        self.log.append(1)
        return bool(self.v > 0)


def nothing_changed(x):
    return x * 2 if any(v > 0 for v in x) else x * 3 if all(v < -0.7 for v in x if v < 5) else x


def shadowed(x):
    any = sum  # noqa: A001
    return x * any(v for v in x)


@pytest.mark.parametrize("program", [known, counts, nothing_changed, shadowed])
@pytest.mark.parametrize("example", [X, Y])
def test_items_that_are_looked_at(program, example):
    check(program, example, others=[(X,), (Y,), (Z,)])


def changes_by_map(x):
    seen = []
    found = any(map(lambda v: seen.append(1) or v > 0, x))  # noqa: C417
    return x * 2 if found else x + len(seen)


def named(x):
    if any((at := n) >= 0 and x[n] > 0 for n in range(3)):
        x = x * 2
    return x + at


def rest_of_an_iterator(x):
    items = (x[n] > 0 for n in range(3))
    y = x * 2 if any(items) else x
    return y + sum(1 for _ in items)


def truths_of_objects(x):
    log = []
    objects = [Logging(v, log) for v in x]
    found = any(objects)
    return x * 2 if found else x + len(log)


@pytest.mark.parametrize("program", [changes_by_map, named, rest_of_an_iterator, truths_of_objects])
def test_what_is_left_open_is_refused(program):
    with pytest.raises(DlcError, match="DLC022"):
        import_torch(Fn(program).eval(), (X,))
