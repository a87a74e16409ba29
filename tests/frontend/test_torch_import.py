"""The PyTorch importer's contract: nesting, names, locations, fallback, refusals, weights."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.frontend.torch_case import Fn, check, compare, data, module, run
from torch import nn
from torch.export import Dim

from dlc.errors import DlcError
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.torch_errors import (
    BadExample,
    ExportFailed,
    ExtentIsConstant,
    MutatedInput,
    MutatedState,
    RandomOperator,
    TrainingMode,
    UnsupportedType,
)
from dlc.frontend.torch_export import coverage, import_torch, weights_fingerprint

Pair = namedtuple("Pair", "left right")


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))

    def forward(self, x: dict[str, torch.Tensor], pair: list[Any], *, flag: bool = True, factor: float = 2.0) -> Any:
        a, b = x["a"] * self.scale, pair[0] + factor
        return {"sum": a + b, "parts": [a, (b, None)], "pair": Pair(a - b, 1.5), "rows": a.shape[0], "flag": flag}


def test_nesting_is_the_models_own() -> None:
    model, args = Nested().eval(), ({"a": data(3, 2)}, [data(3, 2, seed=1), 7])
    imported = import_torch(model, args, {"flag": False, "factor": 3.0})
    leaves = [{"t": "leaf", "i": n} for n in range(4)]
    inputs = {
        "t": "tuple",
        "c": [{"t": "dict", "k": ["a"], "c": [leaves[0]]}, {"t": "list", "c": [leaves[1], {"t": "const", "v": 7}]}],
    }
    keywords = {"t": "dict", "k": ["flag", "factor"], "c": [{"t": "const", "v": False}, {"t": "const", "v": 3.0}]}
    assert imported.in_tree == {"t": "tuple", "c": [inputs, keywords]}
    assert imported.out_tree["k"] == ["sum", "parts", "pair", "rows", "flag"]
    total, parts, pair, rows, flag = imported.out_tree["c"]
    assert total == leaves[0] and rows == {"t": "const", "v": 3} and flag == {"t": "const", "v": False}
    assert parts == {"t": "list", "c": [leaves[1], {"t": "tuple", "c": [leaves[2], {"t": "none"}]}]}
    assert pair == {"t": "namedtuple", "n": "Pair", "k": ["left", "right"], "c": [leaves[3], {"t": "const", "v": 1.5}]}
    assert imported.arg_names == ("x", "pair")
    got = run(imported, (args[0]["a"], args[1][0]))
    np.testing.assert_allclose(got[0], model(*args, flag=False, factor=3.0)["sum"].numpy(), rtol=1e-6)


def test_a_model_output_is_a_dict() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    imported = import_torch(module(lambda x: BaseModelOutput(last_hidden_state=x + 1)), (data(2, 2),))
    assert imported.out_tree == {"t": "dict", "k": ["last_hidden_state"], "c": [{"t": "leaf", "i": 0}]}


def test_an_ordered_dict_and_a_dataclass() -> None:
    @dataclass
    class Result:
        value: torch.Tensor
        extra: torch.Tensor | None = None

    torch.export.register_dataclass(Result, serialized_type_name="Result")
    imported = import_torch(module(lambda x: OrderedDict(first=x + 1, second=Result(x * 2))), (data(2, 2),))
    assert imported.out_tree["k"] == ["first", "second"]
    assert imported.out_tree["c"][1]["k"][0] == "value"


def test_results_of_sort_and_max_keep_their_names() -> None:
    imported = import_torch(module(lambda x: (x.topk(2), x.max(0))), (data(4, 3),))
    first, second = imported.out_tree["c"]
    assert (first["t"], first["n"], first["k"]) == ("namedtuple", "topk", ["values", "indices"])
    assert second["k"] == ["values", "indices"]


def test_symbols_have_the_users_names() -> None:
    batch, half = Dim("batch", min=1, max=64), Dim("half", min=2, max=50)
    model = module(lambda x, y: x + y[: x.shape[0]])
    imported = import_torch(
        model, (data(3, 4), data(64, 4)), dynamic_shapes=(({0: batch, 1: 2 * half}, {1: 2 * half}),)
    )
    assert [s.name for s in imported.program.symbols] == ["batch", "half"]
    assert [str(e) for e in imported.program.params[0].type.shape] == ["#batch", "2*#half"]


def test_an_exported_program_is_imported_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.LayerNorm(3)).eval()
    exported = torch.export.export(model, (data(2, 4),))
    compare(import_torch(exported), model, (data(2, 4, seed=5),))


def test_locations_are_lines_of_the_model() -> None:
    imported = import_torch(Nested().eval(), ({"a": data(3, 2)}, [data(3, 2), 7]))
    places = [str(s.loc) for s in imported.program.body.body]
    assert any(p.startswith("test_torch_import.py:") and p.endswith("(aten.mul)") for p in places), places


def test_tied_weights_are_one_constant() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)
            self.head = nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, i: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(i))

    model = Tied().eval()
    imported = import_torch(model, (torch.tensor([1, 2]),))
    assert len(imported.program.consts) == 1
    array = imported.program.data[imported.program.consts[0].name]
    assert array.__array_interface__["data"][0] == model.table.weight.data_ptr()  # no copy


def test_small_float_weights_are_views() -> None:
    model = nn.Linear(4, 3).to(torch.bfloat16).eval()
    compare(import_torch(model, (data(2, 4, dtype=torch.bfloat16),)), model, (data(2, 4, dtype=torch.bfloat16),))


def test_operators_without_a_definition_are_decomposed() -> None:
    model = module(lambda x: F.huber_loss(x, x * 2) + torch.special.entr(x.abs()))
    imported = import_torch(model, (data(3, 4),))
    assert set(imported.decomposed) == {"aten.huber_loss.default", "aten.special_entr.default"}
    compare(imported, model, (data(3, 4),))
    rows = coverage(torch.export.export(model, (data(3, 4),)))
    assert {r["op"] for r in rows} == set(imported.decomposed) and all(r["decomposed"] for r in rows)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses_through_the_decomposition(reduction: str) -> None:
    target = torch.tensor([1, 0, 2])

    def losses(x: torch.Tensor, t: torch.Tensor) -> Any:
        log = x.log_softmax(1)
        found = (
            F.nll_loss(log, t, reduction=reduction),
            F.cross_entropy(x, t, reduction=reduction),
            F.l1_loss(x, x * 2, reduction=reduction),
        )
        return *found, F.binary_cross_entropy(x.sigmoid(), (x > 0).float(), reduction=reduction)

    check(losses, data(3, 4), target)


def test_sampling_a_grid_through_the_decomposition() -> None:
    grid = torch.linspace(-1.1, 1.1, 24).reshape(2, 3, 2, 2)
    check(lambda x, g: F.grid_sample(x, g, align_corners=False), data(2, 3, 4, 5), grid)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refuses(error: type[DlcError], model: Any, *args: Any, match: str = "", **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        import_torch(model, args, **options)
    assert caught.value.code.startswith("DLC02") and caught.value.help


def test_training_mode() -> None:
    refuses(TrainingMode, nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), data(2, 2), match="training mode")
    refuses(TrainingMode, nn.BatchNorm1d(2), data(3, 2))
    refuses(TrainingMode, Fn(lambda x: F.dropout(x, 0.5)), data(2, 2))
    refuses(TrainingMode, Fn(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), data(1, 2, 3, 4))
    check(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).train(), data(2, 2))  # nothing in it depends on the mode


def test_random_operators() -> None:
    refuses(RandomOperator, module(lambda x: x + torch.randn(2, 2)), data(2, 2), match="aten.randn")
    refuses(RandomOperator, module(lambda x: torch.bernoulli(x.sigmoid())), data(2, 2))


def test_complex_numbers() -> None:
    refuses(UnsupportedType, module(lambda x: x.real), torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(DlcError):
        import_torch(module(lambda x: torch.fft.rfft(x).abs()), (data(8),))


def test_written_buffers_and_inputs() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen[0] += x.sum()
            return x + self.seen

    refuses(MutatedState, Counter().eval(), data(3, 2), match="'seen'")
    refuses(MutatedInput, module(lambda x: x.add_(1)), data(3, 2), match="its input 'args_0' in place, and .* leaves the caller's tensor alone")
    imported = import_torch(Counter().eval(), (data(3, 2),), mutations="return")
    assert imported.mutated == (("seen", 1),)
    got = run(imported, (data(3, 2),))
    np.testing.assert_allclose(got[1], [float(data(3, 2).sum()), 0], rtol=1e-5)


def test_what_cannot_be_traced() -> None:
    refuses(ExportFailed, nn.Linear(3, 2).eval(), data(2, 5))
    refuses(BadExample, "model.pt")
    with pytest.raises(BadExample, match="not a tuple"):
        import_torch(nn.Linear(3, 2).eval(), data(2, 3))


class Doubled(nn.Module):
    """A decision on data, which the recorder takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("shapes", [({0: torch.export.Dim("n")}, None), {"wrong": None}], ids=["too many", "another name"])
@pytest.mark.parametrize("model", [nn.Linear(3, 2), Doubled()], ids=["exported", "recorded"])
def test_shapes_that_are_not_of_the_inputs(model: nn.Module, shapes: Any) -> None:
    refuses(ExportFailed, model.eval(), data(2, 3), match="`dynamic_shapes`", dynamic_shapes=shapes)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), Doubled()], ids=["exported", "recorded"])
def test_an_extent_of_one_in_the_example(model: nn.Module) -> None:
    """torch takes it for a constant: the error names the extent and says what to do."""
    shapes = {"dynamic_shapes": ({0: Dim("batch", min=1, max=64)},)}
    refuses(ExtentIsConstant, model.eval(), data(1, 3), match="'batch' in dynamic_shapes can only be 1", **shapes)
    import_torch(model.eval(), (data(2, 3),), **shapes)


def test_an_unknown_operator_is_named_with_its_line() -> None:
    with torch.library._scoped_library("dlc_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")
        library.impl("twice", lambda x: torch.empty_like(x), "Meta")

        class Twice(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.ops.dlc_test.twice(x)

        with pytest.raises(UnsupportedOperator, match=r"test_torch_import.py:\d+ .*dlc_test.twice"):
            import_torch(Twice(), (data(2),))


def test_the_fingerprint_sees_changed_weights() -> None:
    model = nn.Linear(3, 2)
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(model)
    with torch.no_grad():
        model.bias.add_(1)
    after = weights_fingerprint(model)
    assert after != before
    model.weight = nn.Parameter(model.weight.clone())
    assert weights_fingerprint(model) != after
