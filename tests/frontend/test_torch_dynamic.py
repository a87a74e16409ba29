"""Python control flow that depends on data: each construct against eager PyTorch, what is refused and where."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import math
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import dlc
from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.ir.program import If, Loop, walk_statements
from dlc.ir.verify import verify
from tests.frontend.dynamic_programs import CASES
from tests.frontend.torch_case import Fn, close, run


def module(program: Any) -> nn.Module:
    return (program() if isinstance(program, type) else Fn(program)).eval()


def eager(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = pytree.tree_leaves(model(*[a.clone() for a in inputs]))
    return [v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=_kept(v)) for v in result]


def _kept(v: Any) -> torch.dtype:
    return torch.bool if isinstance(v, bool) else torch.int64 if isinstance(v, int) else torch.float64


@pytest.mark.parametrize("name", CASES)
def test_program_of_each_construct_does_what_eager_does(name):
    program, inputs = CASES[name]
    torch.manual_seed(0)
    model = module(program)
    imported = import_torch(model, inputs[0])
    verify(imported.program, bounds=False)
    for given in inputs:
        got, want = run(imported, given), eager(model, given)
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            close(g, w, name)


COMPILED = (
    "early_return nested_return while_count for_break nested_break return_in_nested_loop inplace_view inplace_loop"
    " number_arith Experts EarlyExit collect Cap dict_loop range_step while_and_index row_is_written NamedParts none_at_some_steps"
    " appended_in_some_arms appended_after_the_exit nonlocal_and_early_returns"
    " merged_written chosen_element_written grows_up_to_a_size appends_a_token_per_step two_grow_together mask_of_rows_and_a_product mask_of_each_expert"
    " break_before_it_grows stop_token_is_not_kept grows_in_some_steps grows_in_some_steps_up_to_a_size size_of_what_grows_as_a_float"
    " arithmetic_of_a_size mask_computed_twice mask_before_and_in_a_loop mask_and_its_complement"
).split()


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_does_what_eager_does(name):
    program, inputs = CASES[name]
    torch.manual_seed(0)
    model = module(program)
    exe = dlc.compile(model, inputs[0])
    for given in inputs:
        got = pytree.tree_leaves(exe(*given))
        for g, w in zip(got, eager(model, given), strict=True):
            close(np.asarray(g), w, name)


def test_every_arm_is_taken_by_some_input():
    """The table is worth something only if its inputs part ways."""
    same = []
    for name, (program, inputs) in CASES.items():
        torch.manual_seed(0)
        model = module(program)
        lines = {_lines(model, given) for given in inputs}
        if len(lines) == 1 and len(inputs) > 1:
            same.append(name)
    assert set(same) <= STRAIGHT, set(same) - STRAIGHT


STRAIGHT = set(
    "ternary ternary_num chained range_list_sum lambda_closure any_builtin comp_tern ternary_nested helper or_value bool_arith"
    " list_of_numbers fold_static isinstance_ aug_num full_num where_num tolist argmax_pick setitem_num star cond_hop while_hop Experts item_float_eq min_max_num slice_n ones_ math_funcs min_over accumulate row_of_row_is_written"
    " swapped_rows_are_views chosen_element_written chosen_before_the_elements_are_written mask_used_twice mask_reads_and_writes"
    " mask_of_rows_and_a_product mask_computed_twice positions_found_twice mask_and_its_complement mask_of_attention mask_written_between constant_written_on_one_path"
    " mask_before_and_after_such_a_write mask_of_what_is_written_by_another_name mask_written_by_another_name sorted_by_a_key"
    " sorted_positions sorted_ends sorted_down sorted_of_two_types bounds_from_the_end comprehensions_over_data"
    " division_beside_another_handler full_of_any_sign slices_at_any_number slices_at_what_steps_count_down".split()
)
"""Programs whose arms are on one line, or that decide by an index."""


def _lines(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    """The lines of the table that an eager call runs through, in order."""
    import sys

    from tests.frontend import dynamic_programs

    found: list[int] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != dynamic_programs.__file__:
            return None
        if event == "line":
            found.append(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with torch.no_grad():
            model(*[a.clone() for a in inputs])
    finally:
        sys.settrace(before)
    return tuple(found)


# --- what becomes of control -----------------------------------------------------------------------------------------


def statements(program: Any, *inputs: Any) -> tuple[int, int, int]:
    """Statements, branches and loops of an imported function."""
    found = list(walk_statements(import_torch(Fn(program).eval(), inputs).program.body))
    return len(found), sum(isinstance(s, If) for s in found), sum(isinstance(s, Loop) for s in found)


def test_control_that_no_input_decides_folds_away():
    def program(x):
        table = torch.tensor([1.0, -1.0, 3.0])
        for v in table:
            if v > 0:
                x = x * 2
            else:
                x = x + 1
        if table.sum() > 100:
            x = x - 1
        return x if x.sum() > 0 else -x

    assert statements(program, torch.ones(3))[1:] == (1, 0)


def test_loop_body_is_in_the_program_once_whatever_its_length():
    def times(count):
        def program(x):
            for _ in range(count):
                x = torch.tanh(x * 1.5)
                if x.abs().max() < 0.1:
                    break
            return x

        return program

    counts = [statements(times(n), torch.ones(3)) for n in (3, 200)]
    assert counts[0] == counts[1]
    assert counts[0][2] == 1


def test_kernels_do_not_grow_with_the_number_of_steps():
    def times(count):
        def program(x):
            n = 0
            while n < count:
                x = torch.tanh(x * 1.5 + n)
                if x.sum() > 2.9:
                    break
                n += 1
            return x

        return Fn(program).eval()

    kernels = [dlc.compile(times(n), (torch.ones(3),)).compile_report.kernels for n in (4, 100)]
    assert kernels[0] == kernels[1]


def test_only_what_is_returned_goes_through_the_exits_of_an_unrolled_loop():
    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
            self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(4))

        def forward(self, x):
            for layer, head in zip(self.layers, self.heads, strict=True):
                x = layer(x)
                y = head(x)
                if y.max() > 0.5:
                    return y
            return self.heads[0](x + 1)

    program = import_torch(Exits().eval(), (torch.ones(4),)).program
    branches = [s for s in walk_statements(program.body) if isinstance(s, If)]
    assert [len(s.outs) for s in branches] == [1, 1, 1, 1]


def test_static_model_is_imported_as_before():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) if x.shape[-1] == 4 else x
            return x

    assert not [
        s for s in walk_statements(import_torch(Plain().eval(), (torch.ones(2, 4),)).program.body) if isinstance(s, If)
    ]


def test_branch_on_symbolic_size_is_a_branch():
    class Sized(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x * 2
            return x * x.shape[0]

    batch = torch.export.Dim("batch", min=2, max=64)
    imported = import_torch(Sized().eval(), (torch.ones(3, 4),), dynamic_shapes=({0: batch},))
    for rows, sign in ((3, 1), (9, -1), (2, -1)):
        x = torch.ones(rows, 4) * sign
        close(run(imported, (x,))[0], Sized()(x))


def test_convolutions_beside_a_branch_take_any_batch():
    """PyTorch picks a library for a convolution by its batch (16), which is no condition of the model's."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1))

        def forward(self, x):
            y = self.layers(x)
            return y.relu() if y.sum() > 0 else y

    model, batch = Gated().eval(), torch.export.Dim("batch", min=2, max=64)
    imported = import_torch(model, (torch.randn(3, 3, 8, 8),), dynamic_shapes=({0: batch},))
    for samples in (2, 15, 16, 17):
        x = torch.randn(samples, 3, 8, 8)
        close(run(imported, (x,))[0], model(x))


def test_recurrent_layers_on_one_path():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.lstm = nn.GRU(4, 4, batch_first=True), nn.LSTM(4, 4, num_layers=2)

        def forward(self, x):
            return self.lstm(self.gru(x)[0])[0] if x.sum() > 0 else x * 2

    model = Sometimes().eval()
    x = torch.rand(2, 3, 4)
    imported = import_torch(model, (x,))
    for given in (x, -x):
        close(run(imported, (given,))[0], model(given))


def test_model_is_left_as_it_was():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else x

    model = Keeps().eval()
    before = {m: dict(m.__dict__) for m in model.modules()}
    weights = [p.data_ptr() for p in model.parameters()]
    import_torch(model, (torch.ones(3),))
    assert before == {m: m.__dict__ for m in model.modules()}
    assert weights == [p.data_ptr() for p in model.parameters()]


_BY_NUMBERS: dict[str, Any] = {
    "add": lambda x, k: (x + k, k - x), "mul": lambda x, k: x * k, "div": lambda x, k: x / k, "rdiv": lambda x, k: k / x,
    "floordiv": lambda x, k: x // k, "compared": lambda x, k: (x > k, x == k, k <= x),
    "rank 0": lambda x, k: (x[0] * k, x[1] / k), "in place": lambda x, k: (x.clone().mul_(k), x.clone().div_(k)), "functions": lambda x, k: (torch.mul(x[0], k), torch.div(x, k)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", _BY_NUMBERS)
def test_small_floats_by_numbers_are_rounded_as_in_eager(name, dtype):
    """ATen takes the number in f32 in products and quotients, and rounds once; elsewhere it rounds the number first."""
    f, generator = _BY_NUMBERS[name], torch.Generator().manual_seed(0)
    x = (torch.randn(500, generator=generator) * 3).to(dtype)
    numbers = [*(torch.randn(6, generator=generator) * torch.tensor([1, 1, 9, 300, 0.02, 1e5])), torch.tensor(0.33325)]

    def branches(x, k):
        return f(x, k.item()) if x[0] == x[0] else f(x, 0.5)

    imported = import_torch(Fn(branches).eval(), (x, numbers[0]))
    cases = [(imported, lambda k: (x, k), k) for k in numbers]
    for n in (0.1, -2.7, 2049, 0.5, 1001.3):
        cases.append((import_torch(Fn(lambda x, n=n: f(x, n)).eval(), (x,)), lambda k: (x,), torch.tensor(n, dtype=torch.float64)))
    for program, given, k in cases:
        want = pytree.tree_leaves(f(x, k.item()))
        for g, w in zip(run(program, given(k)), want, strict=True):
            assert np.array_equal(np.asarray(g).astype(np.float64), w.double().numpy(), equal_nan=True), (k, g, w)


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str, str]] = {}
"""By name: the function, the code of the error, and part of its message. The line that it must name ends in `# here`."""


def refused(code: str, part: str) -> Any:
    def register(program: Any) -> Any:
        REFUSED[program.__name__] = program, code, part
        return program

    return register


@refused("DLC0224", "printed")
def prints(x):
    s = x.sum().item()
    print(s)  # here
    return x


@refused("DLC0224", "exception")
def raises(x):
    if x.sum() > 0:
        raise ValueError("positive")  # here
    return x


@refused("DLC0220", "an assertion is decided before the program runs")
def asserts(x):
    assert x.sum() > 0  # here
    return x * 2


@refused("DLC0221", "float32[3] on one path")
def shapes_differ(x):
    if x.sum() > 0:
        y = x
    else:
        y = x[:2]
    return y.sum() * torch.cat([y, y])  # here


@refused("DLC0221", "and None on the other")
def none_or_tensor(x):
    y = None
    if x.sum() > 0:
        y = x
    return y.sum()  # here


@refused("DLC0222", "defines it on some paths only")
def undefined_in_one_arm(x):
    if x.sum() > 0:
        y = x
    return y + 1  # here


@refused("DLC0222", "defines it on some paths only")
def unset_after_no_step(x):
    while x.sum() < 5:
        y = x
        x = x + 1
    return y + x  # here


@refused("DLC0222", "defines it on some paths only")
def unset_at_one_of_two_exits(x):
    while True:
        x = x + 1
        if x.sum() > 20:
            y = x * 2
            break
        if x[0] > 2:
            break
    return y + x  # here


@refused("DLC0222", "defines it on some paths only")
def condition_written_between(x):
    big = x.sum() > 0
    if big:
        y = x * 2
    big.copy_(x[1] > 0)
    if big:
        x = x + y  # here
    return x


@refused("DLC0220", "rounded to decimal digits")
def rounds_to_digits(x):
    k = round(x.sum().item(), 2)  # here
    return x * k


@refused("DLC0220", "text")
def formats(x):
    name = f"{x.sum().item()}"  # here
    return x if name else -x


@refused("DLC0220", "filters")
def filters(x):
    return {i: v for i, v in enumerate(x) if v > 0}[0]  # here


@refused("DLC0221", "a list of 2 on one path and a list of 1")
def lengths_differ(x):
    outs = [x]
    if x.sum() < 0:
        outs.append(x * 2)
    return outs[1]  # here


@refused("DLC0223", "'x' does not grow by as much in every step")
def grows(x):
    while x.sum() < 5:  # here
        x = torch.cat([x, x])
    return x.sum()


@refused("DLC0223", "'y' grows by 1 along dimension 0 in every step, and no bound on their number was found")
def grows_without_bound(x):
    y = x
    while y.sum() < 5:  # here
        y = torch.cat([y, y[:1] + 1])
    return y


@refused("DLC0223", "up to 1000000 times, which is too large")
def grows_too_large(x):
    y, n = x[:, None], 0
    while n < 1000000 and y.sum() < 5:  # here
        y = torch.cat([y, y[:, :1] + 1], 1)
        n += 1
    return y


@refused("DLC0223", "'y' grows by 2 along dimension 0 in some steps, and no bound on their number was found")
def grows_sometimes_without_bound(x):
    y = x
    while y.sum() < 5:  # here
        if y[0] > 0:
            y = torch.cat([y, y[:2] + 1])
    return y


@refused("DLC0221", "a tensor float32[2] on one path and a tensor float32[3] on the other")
def shrinks_sometimes(x):
    y = x
    while y.sum() < 5:  # here
        y = y[:2] if y[0] > 0 else y + 1
    return y


@refused("DLC0221", "a tensor float32[3] on one path and a tensor float32[2] on the other")
def sizes_differ(x):
    y = x if x.sum() > 9 else x[:2]
    return y * 2  # here


@refused("DLC0220", "the value of an extent decides here, and cannot be recorded: it is turned into text")
def text_of_a_size(x):
    y = x[x > 0]
    return y * len(str(y.shape[0]))  # here


@refused("DLC0220", "the value of an extent decides here, and cannot be recorded: it is turned into text")
def formatted_size(x):
    y = x[x > 0]
    return y * len(f"{y.shape[0]}")  # here


@refused("DLC0220", "an extent decides here, and cannot be recorded: gcd of the standard library needs it")
def size_for_the_standard_library(x):
    y = x[x > 0]
    return y * math.gcd(len(y), 6)  # here


@refused("DLC0223", "before it and")
def changes_its_rank(x):
    while x.sum() < 5:  # here
        x = x[None] + 1
    return x.sum()


@refused("DLC0220", "a generator decides as it runs")
def generator(x):
    def items():
        for v in x:
            if v > 0:  # here
                yield v

    return sum(items())


@refused("DLC0220", "match")
def matches(x):
    match x.sum().item():  # here
        case 1.0:
            return x
        case float(real=1.0):
            return -x
        case _:
            return x


@refused("DLC0220", "among the keys is a tuple of 2")
def sorts_by_tuples(x):
    pairs = sorted([(x[0], 1), (x[1], 2)])  # here
    return pairs[0][0]


@refused("DLC0220", "it is turned into text")
def text_of_a_tensor(x):
    return x if str(x.sum()) == "tensor(2.5000)" else -x  # here


@refused("DLC0220", "it is turned into text")
def formatted_tensor(x):
    return x if f"{x.sum()}" == "2.5" else -x  # here


@refused("DLC0220", "it is turned into text")
def text_of_numbers(x):
    return x if "-" in repr(x.tolist()) else -x  # here


@refused("DLC0227", "a loop has collected it")
def collected_written(x):
    outs = []
    while x.sum() < 5:
        x += 1  # here
        outs.append(x)
    return torch.stack(outs)


@refused("DLC0227", "a row at a position from data")
def row_of_one_path_written(x):
    y = torch.stack([x, x * 2])
    r = x * 1
    if x.sum() > 0:
        r = y[x.argmax() - 1]
    r += 1  # here
    return y


@refused("DLC0227", "a part of that memory")
def part_of_one_path_written(x):
    y = x * 2
    z = y[:2] if x.sum() > 0 else x[1:] * 1
    z += 1  # here
    return y, z


@refused("DLC0228", "changed at test_torch_dynamic.py")
def united_list_changed(x):
    a, b = [x], [x * 2]
    c = a if x.sum() > 0 else b
    c.append(x * 3)
    return len(a), c[0]  # here


@refused("DLC0228", "D.h is used")
def united_record_changed(x):
    @dataclass
    class D:
        h: Any

    a, b = D(x), D(x * 2)
    c = a if x.sum() > 0 else b
    a.h = x * 3
    return c.h + b.h  # here


@refused("DLC0228", "the list is used")
def list_of_a_step_changed(x):
    a = [x]
    b = a
    while x.sum() < 5:
        b = [b[0] * 2]
        x = x + 1
    b[0] = b[0] + 1
    return a[0] + b[0]  # here


@refused("DLC0220", "one object on some paths")
def is_on_one_path(x):
    y = x
    if x.sum() > 0:
        y = x + 1
    return x * 2 if y is x else y  # here


@refused("DLC0221", "a tensor float32[3] on one path and a list of 1")
def type_on_one_path(x):
    v = x if x.sum() > 0 else [x]
    if isinstance(v, list):  # here
        return v[0] * 2
    return v


@refused("DLC0220", "bind it before")
def bound_on_one_path(x):
    m = x.max()
    while (x.sum() > 0 and (m := x.max()) > 1) != (m > 9):  # here
        x = x - m
    return x


@refused("DLC0221", "a list of 1 on one path and a list of 0")
def counted_on_one_path(x):
    outs, n = [], 0
    if x.sum() > 0:
        outs.append(x)
    for _, _ in enumerate(outs):  # here
        n += 1
    return x * n


@refused("DLC0223", "in some steps only")
def appended_in_some_steps(x):
    outs, n = [], 0
    while n < 7 and x.sum() < 30:  # here
        n += 1
        x = x * 1.3
        if x[0] > x[1]:
            outs.append(x)
    return n


@refused("DLC0210", "what .numpy() (or NumPy, of a tensor) gives is computed with outside of PyTorch")
def numpy_in_between(x):
    if x.sum() > 0:
        x = x + 1
    return torch.from_numpy(x.numpy() * 2)  # here


@refused("DLC0212", "RuntimeError: a and b must have same reduction dim")
def shapes_that_do_not_fit(x):
    if x.sum() > 0:
        x = x @ torch.ones(4, 4)  # here
    return x


def swallows(x):
    try:
        name = f"{x.sum().item()}"  # here
    except Exception:
        return x
    return x * len(name)


class Holder:
    pass


class Table(dict[str, int]):
    pass


@refused("DLC0222", "'Holder.y' is used here")
def has_an_attribute_of_one_path(x):
    held = Holder()
    if x.sum() > 0:
        held.y = x
    return x if hasattr(held, "y") else x * 2  # here


@refused("DLC0222", "'Holder.y' is used here")
def lists_an_attribute_of_one_path(x):
    held = Holder()
    if x.sum() > 0:
        held.y = x
    return x * len(vars(held))  # here


@refused("DLC0222", "'Holder.y' is used here")
def attribute_taken_away_by_name(x):
    held = Holder()
    held.y = x
    if x.sum() > 0:
        delattr(held, "y")  # noqa: B043
    return x if hasattr(held, "y") else x * 2  # here


@refused("DLC0221", "a Table of 1 on one path and a Table of 0")
def key_of_one_path_in_a_kind_of_dict(x):
    table = Table()
    if x.sum() > 0:
        table["a"] = 1
    return x if "a" in table else x * 2  # here


@refused("DLC0221", "a Table of 1 on one path and a Table of 0")
def truth_of_a_kind_of_dict(x):
    table = Table()
    if x.sum() > 0:
        table["a"] = 1
    return x if table else x * 2  # here


@refused("DLC0221", "a defaultdict of 1 on one path and a defaultdict of 0")
def entry_that_reading_makes(x):
    table = defaultdict(int)
    y = x + table["a"] if x.sum() > 0 else x
    return y * len(table)  # here


@refused("DLC0221", "a dict of 2 on one path and a dict of 2")
def order_of_keys(x):
    table = {"a": 1, "b": 2}
    if x.sum() > 0:
        table["a"] = table.pop("a")
    return x * next(iter(table.values()))  # here


@refused("DLC0221", "a set on one path and a set")
def set_compared(x):
    found = {1}
    if x.sum() > 0:
        found.add(2)
    return x * (found == {1})  # here


@refused("DLC0220", "how far an iterator has come")
def iterator_stepped_on_one_path(x):
    numbers = iter([1, 2])
    if x.sum() > 0:
        next(numbers)  # here
    return x * next(numbers)


@refused("DLC0220", "how far an iterator has come")
def iterator_looped_over_on_one_path(x):
    numbers = iter([1, 2])
    if x.sum() > 0:
        for n in numbers:  # here
            x = x + n
    return x * next(numbers, 7)


@refused("DLC0224", "whether ZeroDivisionError is raised here and caught depends on data")
def division_whose_failure_is_caught(x):
    try:
        share = 1 / x.sum().item()  # here
    except ArithmeticError:
        return x
    return x * share


@refused("DLC0224", "whether ValueError is raised here and caught")
def root_whose_failure_is_caught(x):
    try:
        root = math.sqrt(x.sum().item())  # here
    except (TypeError, ValueError):
        return x
    return x * root


@refused("DLC0224", "OverflowError")
def power_whose_overflow_is_caught(x):
    n = x.sum().item()
    try:
        return x * 2.0**n  # here
    except OverflowError:
        return x


@refused("DLC0224", "ZeroDivisionError")
def power_of_zero_that_is_caught(x):
    n = int(x.sum())
    try:
        return x * n**-1  # here
    except ZeroDivisionError:
        return x


@refused("DLC0224", "ValueError")
def shift_whose_error_is_caught(x):
    n = int(x.sum())
    try:
        return x * (n << n)  # here
    except ValueError:
        return x


@refused("DLC0224", "whether KeyError is raised here and caught")
def entry_whose_absence_is_caught(x):
    def entry(table, key):
        return table[key]  # here

    try:
        return entry({1: x, 2: -x}, int(x.argmax()))
    except:  # noqa: E722
        return x * 3


@refused("DLC0224", "whether IndexError is raised here and caught")
def position_whose_absence_is_caught(x):
    try:
        return x * [1, 2][int(x.sum())]  # here
    except LookupError:
        return x


@refused("DLC0224", "whether ValueError is raised here and caught")
def integer_whose_absence_is_caught(x):
    try:
        n = int(x.sum())  # here
    except ValueError:
        return x
    return x * n


@refused("DLC0224", "whether OverflowError is raised here and caught")
def rounding_whose_failure_is_caught(x):
    try:
        n = math.floor(x.sum().item())  # here
    except OverflowError:
        return x
    return x * n


@refused("DLC0224", "whether ZeroDivisionError is raised here and caught")
def division_whose_failure_is_suppressed(x):
    share = 2.0
    with contextlib.suppress(ZeroDivisionError):
        share = 1 / x.sum().item()  # here
    return x * share


@contextlib.contextmanager
def quiet():
    try:
        yield 1
    except ArithmeticError:
        pass


@refused("DLC0224", "whether ZeroDivisionError is raised here and caught")
def division_whose_failure_a_context_catches(x):
    share = 2.0
    with quiet() as n:
        share = n / x.sum().item()  # here
    return x * share


class Quiet:
    def __enter__(self):
        return 1

    def __exit__(self, kind, *_):
        return kind is ZeroDivisionError


@refused("DLC0224", "whether ZeroDivisionError is raised here and caught")
def division_whose_failure_an_object_catches(x):
    share = 2.0
    with torch.no_grad(), Quiet() as n:
        share = n / x.sum().item()  # here
    return x * share


@refused("DLC0224", "whether ZeroDivisionError is raised here and caught")
def division_whose_failure_a_group_catches(x):
    share = 2.0
    try:
        share = 1 / x.sum().item()  # here
    except* ZeroDivisionError:
        share = 3.0
    return x * share


@refused("DLC0221", "int 9007199254740993 on one path and float 0.5 on the other")
def int_beyond_what_floats_hold_beside_a_float(x):
    r = 2**53 + 1 if x.sum() > 0 else 0.5
    return x * 2 if r == 2**53 else x  # here


@refused("DLC0223", "'n' is int 9007199254740993 before it and float")
def int_beyond_what_floats_hold_before_a_loop(x):
    n = 2**53 + 1
    while x.sum() < 9:  # here
        n = n * 0.5
        x = x + 1
    return x * 2 if n == 2**53 else x


@refused("DLC0221", "a tensor float32[] on one path and a Python int on the other, which matters to its type")
def number_or_float_tensor_beside_integers(x):
    r = x.sum() if x.max() > 3 else 3
    return torch.arange(4) * r  # here


@refused("DLC0221", "a tensor float32[] on one path and a Python int on the other, which matters to its type")
def number_that_an_arm_makes_a_tensor_beside_integers(x):
    s = 0
    if x.max() > 3:
        s = s + x.sum()
    s = s * 2 + 1
    return (x > 0) + s  # here


@refused("DLC0221", "a tensor float32[] on one path and a Python int on the other, which matters to its type")
def number_that_steps_make_a_tensor_beside_integers(x):
    s = 0
    for i in range(30):
        if x.sum() > i:
            s = s + x[0]
    return torch.arange(3) + s  # here


@refused("DLC0221", "a tensor float32[] on one path and a Python float on the other, which matters to its type")
def number_or_tensor_beside_a_smaller_tensor_without_dimensions(x):
    s = x.sum() if x.max() > 3 else 0.0
    return x.sum().half() * s  # here


@refused("DLC0221", "a tensor float32[] on one path and a Python float on the other, which matters to its type")
def number_that_the_tensor_rounds_compared_with_a_number(x):
    s = x.sum() if x.max() > 3 else 0.1
    return x * 2 if s < 0.1000000001 else x  # here


@refused("DLC0221", "'the result' is used here")
def results_of_two_kinds(x):
    if x.sum() > 0:
        return x
    return x, x  # here


REFUSED["swallows"] = swallows, "DLC0220", "text"


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_line_and_the_reason(name):
    program, code, part = REFUSED[name]
    with pytest.raises(DlcError) as caught:
        import_torch(Fn(program).eval(), (torch.tensor([1.0, 2.0, -0.5]),))
    error = caught.value
    assert (error.code, part in str(error)) == (code, True), str(error)
    lines, first = inspect.getsourcelines(program)
    here = next(n for n, text in enumerate(lines) if "# here" in text)
    assert str(error.loc).split(" ")[0] == f"test_torch_dynamic.py:{first + here}", str(error)
    assert error.help


def test_state_that_outlives_the_call_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            if x.sum() > 0:
                self.calls += 1
            return x * self.calls

    model = Counts().eval()
    with pytest.raises(DlcError, match="Counts.calls") as caught:
        import_torch(model, (torch.ones(3),))
    assert model.calls == 0
    assert str(caught.value.loc) == f"test_torch_dynamic.py:{inspect.getsourcelines(Counts)[1] + 7}"
    assert "self.calls += 1" in str(caught.value) and "make it an input" in str(caught.value.help)


def test_container_that_outlives_the_call_is_refused_by_its_attribute():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = {}

        def forward(self, x):
            if x.sum() > 0:
                self.seen["last"] = x
            return x * 2

    model = Keeps().eval()
    with pytest.raises(DlcError, match="changes 'Keeps.seen' in place") as caught:
        import_torch(model, (torch.ones(3),))
    assert str(caught.value.loc) == f"test_torch_dynamic.py:{inspect.getsourcelines(Keeps)[1] + 7}"
    assert model.seen == {}


def test_attribute_that_is_set_while_tracing_is_as_it_was_afterwards():
    class Notes(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = []

        def forward(self, x):
            self.last = x * 2
            self.log.append(x)
            return self.last + 1

    model = Notes().eval()
    close(run(import_torch(model, (torch.ones(3),)), (torch.ones(3),))[0], torch.full((3,), 3.0))
    assert "last" not in model.__dict__ and model.log == []


def test_inputs_that_forward_does_not_take_are_refused():
    with pytest.raises(DlcError, match="DLC0217.*Fn.forward does not take the example inputs.*'y'"):
        import_torch(Fn(lambda x: x).eval(), (torch.ones(3),), {"y": torch.ones(3)})


def test_buffer_that_changes_is_refused_where_it_does():
    class Averages(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            if x.sum() > 0:
                self.mean.mul_(0.9).add_(x, alpha=0.1)
            return x - self.mean

    with pytest.raises(DlcError, match="DLC0215.*'mean'") as caught:
        import_torch(Averages().eval(), (torch.ones(3),))
    assert str(caught.value.loc).startswith(f"test_torch_dynamic.py:{inspect.getsourcelines(Averages)[1] + 7} ")


def test_buffer_that_changes_on_one_path_by_another_name_is_refused_where_it_does():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            m = self.mean if x.sum() > 0 else x * 2
            m += 1
            return m

    with pytest.raises(DlcError, match="DLC0215.*'mean'") as caught:
        import_torch(Hidden().eval(), (torch.ones(3),))
    assert str(caught.value.loc).startswith(f"test_torch_dynamic.py:{inspect.getsourcelines(Hidden)[1] + 7} ")
    changed = import_torch(Hidden().eval(), (torch.ones(3),), mutations="return")
    assert [run(changed, (torch.ones(3) * s,))[1].tolist() for s in (1, -1)] == [[1.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("written", ["self.kept", "self.kept if x.sum() > 0 else x * 2", "x * 2 if x.sum() > 0 else self.kept"])
def test_tensor_kept_in_an_attribute_that_changes_is_refused_where_it_does(written, tmp_path):
    text = f"""
        class Keeps(nn.Module):
            def __init__(self):
                super().__init__()
                self.kept = torch.zeros(3)

            def forward(self, x):
                m = {written}
                m += 1
                return m if x.max() > 0 else x
    """
    source = tmp_path / "keeps.py"
    source.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location("keeps", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(DlcError, match="DLC0215.*kept from call to call") as caught:
        import_torch(module.Keeps().eval(), (torch.ones(3),))
    assert str(caught.value.loc).startswith("keeps.py:11 ")
