"""What a model asks of extents and tensors beside their values: it is told what eager would say, or it is refused.

No program here decides on data, so that torch.export traces them; each is run with several sizes.
"""

from __future__ import annotations

import functools
import logging
import math
import numbers

import numpy as np
import pytest
import torch
from torch import nn
from torch.compiler import is_compiling
from torch.export import Dim

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.ir.errors import RunTimeExtent
from tests.frontend.torch_case import Fn, close, run

SIZES = (1, 2, 3, 4, 5, 8)
log = logging.getLogger(__name__)


def is_int(n):
    return isinstance(n, int)


class Whole:
    def __init__(self, n):
        self.n = n

    @property
    def known(self):
        return type(self.n) is int


class Inner(nn.Module):
    def forward(self, x):
        return x * 2 if is_int(x.shape[0]) else x * 3


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x) + 1


@functools.singledispatch
def by_type(v):
    return 3.0


@by_type.register(int)
def _(v):
    return 2.0


def matched(x):
    match tuple(x.shape):
        case (int(rows), 4):
            return x * rows
        case _:
            return x * 5


def literals(x):
    match x.shape[0]:
        case 4:
            return x * 2
        case 1 | 2:
            return x * 3
        case n if n > 5:
            return x * n
        case _:
            return x * 5


def logs(x):
    log.info(f"{x.shape[0]} rows")
    print("rows:", x.shape[0])
    return x * 2


ANSWERED = {
    "isinstance": lambda x: x * 2 if isinstance(x.shape[0], int) else x * 3,
    "isinstance_of_several": lambda x: x * 2 if isinstance(x.size(0), (float, int)) else x * 3,
    "isinstance_of_a_product": lambda x: x * 2 if isinstance(x.numel() * 2 + 1, int) else x * 3,
    "isinstance_float": lambda x: x * 2 if isinstance(x.shape[0] ** 0.5, float) else x * 3,
    "isinstance_bool": lambda x: x * 2 if isinstance(x.shape[0] == 4, bool) else x * 3,
    "isinstance_abstract": lambda x: x * 2 if isinstance(x.shape[0], numbers.Integral) else x * 3,
    "isinstance_symbol": lambda x: x * 2 if isinstance(x.shape[0], torch.SymInt) else x * 3,
    "type": lambda x: x * 2 if type(x.shape[0]) is int else x * 3,
    "type_of_all": lambda x: x * 2 if set(map(type, x.shape)) == {int} else x * 3,
    "name_of_type": lambda x: x * 2 if type(x.shape[0]).__name__ == "int" else x * 3,
    "made_of_type": lambda x: x * type(x.shape[0])("3"),
    "issubclass": lambda x: x * 2 if issubclass(type(x.shape[0]), int) else x * 3,
    "class": lambda x: x * 2 if x.shape[0].__class__ is int else x * 3,
    "is_true": lambda x: x * 2 if (x.shape[0] == 4) is True else x * 3,
    "is_none": lambda x: x * 2 if x.shape[0] is not None else x * 3,
    "helper": lambda x: x * 2 if is_int(x.shape[0]) else x * 3,
    "property": lambda x: x * 2 if Whole(x.shape[0]).known else x * 3,
    "part": Outer(),
    "singledispatch": lambda x: x * by_type(x.shape[0]),
    "match": matched,
    "match_literals": literals,
    "match_truth": lambda x: truth_matched(x),  # noqa: PLW0108 (defined below)
    "in": lambda x: x * 2 if x.shape[0] in (1, 2) else x * 3,
    "in_a_set": lambda x: x * 2 if x.shape[0] in {1, 2} else x * 3,
    "dict_get": lambda x: x * {4: 2.0, 8: 3.0}.get(x.shape[0], 5.0),
    "int_of_a_fraction": lambda x: x * int(x.shape[0] * 0.75),
    "size_is_a_tuple": lambda x: x * 2 if isinstance(x.size(), tuple) and type(x.shape) is torch.Size else x * 3,
    "shape_is_equal": lambda x: x * 2 if x.shape == (4, 4) else x * 3,
    "layout": lambda x: x * 2 if x.t().is_contiguous() else x * 3,
    "rest_by_division": lambda x: x.view(2, -1).sum(0),
    "type_of_tensor": lambda x: x * 2 if type(x) is torch.Tensor else x * 3,
    "class_of_tensor": lambda x: x * 2 if x.__class__ is torch.Tensor else x * 3,
    "is_compiling": lambda x: x * 2 if is_compiling() else x * 3,
    "compiler_is_compiling": lambda x: x * 2 if torch.compiler.is_compiling() else x * 3,
    "is_exporting": lambda x: x * 2 if torch.compiler.is_exporting() else x * 3,
    "dynamo_is_compiling": lambda x: x * 2 if torch._dynamo.is_compiling() else x * 3,
    "told_to_people": logs,
}
"""Programs that compile, and mean what eager means by them."""

FAR = {
    "equal": lambda x: x * 2 if x.shape[0] == 4 else x,
    "equal_far": lambda x: x * 2 if x.shape[0] == 100 else x,
    "unequal": lambda x: x if x.shape[0] != 100 else x * 3,
    "in": lambda x: x * 2 if x.shape[0] in [4, 100] else x,
    "sum": lambda x: x * 2 if x.shape[0] + 3 == 103 else x,
    "multiple": lambda x: x * 2 if x.shape[0] % 100 == 0 else x,
    "shape": lambda x: x * 2 if x.shape == (100, 4) else x,
    "beyond": lambda x: x * 2 if x.shape[0] > 90 else x,
}
"""Programs that compute nothing for the example's size, so that torch.export asserts nothing of it."""


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("dim", [Dim("b"), Dim("b", min=2, max=4096), Dim.AUTO])
def test_size_that_is_not_the_examples(name, dim):
    model = Fn(FAR[name]).eval()
    imported = import_torch(model, (torch.randn(5, 4),), dynamic_shapes=(({0: dim},),))
    for rows in (4, 5, 50, 100, 101, 200):
        x = torch.randn(rows, 4)
        try:
            got = run(imported, (x,))[0]
        except RunTimeExtent:
            assert dim is Dim.AUTO and rows > 90
            continue
        close(got, model(x))


def truth_matched(x):
    match x.shape[0] > 3:
        case True:
            return x * 2
        case _:
            return x * 3


class Telling(nn.Module):
    """Has a method that is called as a logger's is, and keeps what it is told."""

    def info(self, text):
        self.told = len(text)

    def forward(self, x):
        self.info(f"{x.shape[0]}")
        return x * self.told


def test_a_method_of_the_model_is_no_logger():
    with pytest.raises(DlcError, match="turned into text"):
        import_torch(Telling().eval(), (torch.randn(4, 4),), dynamic_shapes=({0: Dim("b")},))


REFUSED = {
    "is": lambda x: x * 2 if x.shape[0] is x.size(0) else x * 3,
    "f_string": lambda x: x * 2 if f"{x.shape[0]}" == "4" else x * 3,
    "str": lambda x: x * len(str(x.shape[0])),
    "repr": lambda x: x * len(repr(x.shape[0])),
    "percent": lambda x: x * 2 if "%s" % x.shape[0] == "4" else x * 3,  # noqa: UP031
    "format": lambda x: x * 2 if "{}".format(x.shape[0]) == "4" else x * 3,  # noqa: UP032
    "shape": lambda x: x * 2 if str(x.shape) == "torch.Size([4, 4])" else x * 3,
    "join": lambda x: x * 2 if "x".join(map(str, x.shape)) == "4x4" else x * 3,
    "hash": lambda x: x * (hash(x.shape[0]) % 7),
    "cached": lambda x: x * cached(x.shape[0]),
    "bits": lambda x: x * x.shape[0].bit_length(),
    "gcd": lambda x: x * math.gcd(x.shape[0], 6),
    "numpy": lambda x: x * float(np.sqrt(x.shape[0])),
}
"""Programs that need the value, and must not get the example's."""


@functools.lru_cache
def cached(n):
    return n + 1


def imported_with_batch(program):
    model = program if isinstance(program, nn.Module) else Fn(program)
    rows = {0: Dim("batch", min=1, max=64)}
    shapes = (rows,) if isinstance(program, nn.Module) else ((rows,),)
    return model, import_torch(model.eval(), (torch.randn(4, 4),), dynamic_shapes=shapes)


@pytest.mark.parametrize("name", ANSWERED)
def test_answer_is_eagers(name):
    model, imported = imported_with_batch(ANSWERED[name])
    same = 0
    for rows in SIZES:
        x = torch.randn(rows, 4)
        try:
            got = run(imported, (x,))[0]
        except RunTimeExtent:
            continue
        close(got, model(x))
        same += 1
    assert same >= 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_answer_is_refused(name):
    with pytest.raises(DlcError):
        imported_with_batch(REFUSED[name])


def test_refusal_that_the_model_catches():
    def looks_up(x):
        try:
            return x * {4: 1.0, 8: 2.0}[x.shape[0]]
        except Exception:
            return x * 3

    with pytest.raises(DlcError, match="DLC0224"):
        imported_with_batch(looks_up)


def test_variables_of_the_models_files_are_as_they_were():
    before = dict(globals())
    imported_with_batch(ANSWERED["is_compiling"])
    assert globals().keys() == before.keys()
    assert all(globals()[name] is v for name, v in before.items())
