"""Models that change what outlives a call: refused where later calls compute with it, compiled where none does."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import itertools
import random
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.frontend.torch_state import Kept
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
