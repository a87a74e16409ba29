"""`dlc.compile(quantize=)` and `--quantize`: compiled code computes what the quantised program means, at every level."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlc
from dlc import gpu
from dlc.cli import main
from dlc.importing import import_any
from dlc.ir.dtype import CODED, F8E8M0, I8, U8
from dlc.ir.error_model import bounded_cascade, worst
from dlc.ir.interpret import run_program
from dlc.ir.program import Cascade
from dlc.passes.quantize_weights import BadQuantisation, QuantizeWeights, SkipsNothing, UnevenActivations
from dlc.quantize import Quantize, UnknownQuantisation, quantise

WEIGHT_TYPES = [str(t) for t in (*CODED, U8, I8) if t != F8E8M0]
LEVELS = ("host", "avx2", "baseline")


class Tied(torch.nn.Module):
    """A table, two layers, and the table again as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 32)
        self.up, self.down = torch.nn.Linear(32, 48), torch.nn.Linear(48, 32)
        self.head = torch.nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(torch.relu(self.up(self.table(ids)))))


def tied() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Tied(), torch.randint(0, 40, (2, 5))


@pytest.mark.parametrize("at", range(0, len(WEIGHT_TYPES), 2))
def test_compiled_is_interpreted(at: int) -> None:
    """Two types share one compilation's place in the grid of level, activation and group."""
    model, ids = tied()
    options = Quantize(
        weights=WEIGHT_TYPES[at],
        group=(32, 16, None)[at % 3],
        activation=("f32", "i8", "bf16")[at // 2 % 3],  # type: ignore[arg-type]
        activation_group=16 if at % 4 == 0 else None,
    )
    imported = import_any(model, (ids,), None, None, None)
    program = quantise(imported, options)[0].program
    exe = dlc.compile(model, (ids,), quantize=options, target=LEVELS[at // 2 % 3], cache=False)
    assert [layer.dtype for layer in exe.compile_report.quantised] == [WEIGHT_TYPES[at]] * 3
    cascade = Cascade("model", (*program.params, *program.consts), program.body.body, program.results)  # type: ignore[arg-type]
    bounded = bounded_cascade(cascade, [ids.numpy(), *(program.data[c.name] for c in program.consts)])
    if options.activation == "f32":
        assert worst([exe(ids).detach().numpy()], bounded) is None
    else:  # a value on the border of two codes may be rounded to the other one
        np.testing.assert_allclose(
            exe(ids).detach().numpy(), bounded.values[0], rtol=0, atol=0.02 * np.abs(bounded.values[0]).max()
        )


@pytest.mark.parametrize(("weights", "activation"), [("b1", "b1"), ("i2", "i2"), ("u1", "i4")])
def test_few_bits_by_few_bits_are_counted(weights: str, activation: str, tmp_path: Path) -> None:
    """A layer becomes a count of common bits where that costs less, and is what the interpreter says."""
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(96, 40), torch.nn.ReLU()), torch.randn(3, 96)
    options = f"{weights}:row:a={activation}"
    program = quantise(import_any(model, (x,), None, None, None), Quantize.parse(options))[0].program
    exe = dlc.compile(model, (x,), quantize=options, target="avx2", cache=False, dump_dir=tmp_path)
    assert "dot<u1, u1>" in "".join(path.read_text() for path in (tmp_path / "kernels").rglob("*.tile"))
    (want,) = run_program(program, [x.numpy()])
    np.testing.assert_allclose(exe(x).detach().numpy(), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_calls_of_a_torch_model_calibrate_it() -> None:
    model, ids = tied()
    calls = [(torch.randint(0, 40, (2, 5)),) for _ in range(4)]
    errors = {}
    for method in ("nearest", "compensated"):
        exe = dlc.compile(model, (ids,), quantize=Quantize("i3", 16, calibrate=calls, method=method))  # type: ignore[arg-type]
        errors[method] = sum(layer.output_error for layer in exe.compile_report.quantised)
    assert errors["compensated"] < errors["nearest"]


def test_an_artifact_of_a_quantised_model_is_loaded_without_the_compiler(tmp_path: Path) -> None:
    model, ids = tied()
    exe = dlc.compile(model, (ids,), quantize="u4:g16:skip=head")
    exe.save(tmp_path / "m.dlc")
    np.testing.assert_array_equal(dlc.load(tmp_path / "m.dlc")(ids.numpy()), exe(ids).detach().numpy())


def test_the_cache_tells_quantisations_apart() -> None:
    model, ids = tied()
    first, second = (dlc.compile(model, (ids,), quantize=q)(ids).detach().numpy() for q in ("i4", "i5"))
    assert np.abs(first - second).max() > 0
    key = Quantize("i4", calibrate=[(ids,)]).key()
    assert key != Quantize("i4", calibrate=[(ids + 1,)]).key() != Quantize("i4").key() != key


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("i3:g64", Quantize("i3", 64)),
        ("u4:row:a=i8:s=bf16:z=real", Quantize("u4", None, "i8", scales="bf16", zero_point="real")),
        ("b1:row:a=b1", Quantize("b1", None, "b1")),
        ("auto:4.5bits:skip=lm_head|wte*:no-tables", Quantize("auto:4.5bits", skip=("lm_head", "wte*"), tables=False)),
    ],
)
def test_the_short_form(text: str, same: Quantize) -> None:
    assert Quantize.parse(text) == same


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("i3:64", UnknownQuantisation, "'64' is no option"),
        ("i3:a=i5", UnknownQuantisation, "'a' is one of f32, bf16, i8, i4, .*, b1, not 'i5'"),
        ("auto", BadQuantisation, "'auto' is no budget"),
        ("i3:g", UnknownQuantisation, "'g' is no option"),
        ("i3:skip=", UnknownQuantisation, "'skip=' is no option"),
        ("", UnknownQuantisation, "begins with no type"),
        (":g64", UnknownQuantisation, "begins with no type"),
        ("i4:g64:g32", UnknownQuantisation, "'g32' says 'group' again"),
        ("i4:row:g32", UnknownQuantisation, "'g32' says 'group' again"),
        ("i4:skip=a:skip=b", UnknownQuantisation, "'skip=b' says 'skip' again"),
    ],
)
def test_a_short_form_that_says_nothing(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Quantize.parse(text)


@pytest.mark.parametrize("wish", [42, ["i4"], {"weights": "i4"}, True, b"i4", QuantizeWeights()])
def test_what_is_no_quantisation(wish: Any) -> None:
    model, x = torch.nn.Linear(40, 24), torch.randn(3, 40)
    with pytest.raises(
        BadQuantisation, match=r"`quantize` is dlc.Quantize\(...\), its short form as 'i4:g64' or None, not "
    ) as caught:
        dlc.compile(model, (x,), quantize=wish, cache=False)
    assert caught.value.message.endswith(repr(wish))
    with pytest.raises(BadQuantisation, match="its short form"):
        gpu.compile_ptx(model, (x,), quantize=wish)


def test_a_misspelt_skip_quantises_nothing_in_silence() -> None:
    model, ids = tied()
    with pytest.raises(
        SkipsNothing, match="`skip` names 'dwon', and the program has no parameter of this name"
    ) as caught:
        dlc.compile(model, (ids,), quantize=Quantize("i4", skip=("head", "dwon")), cache=False)
    assert caught.value.help == "did you mean 'down'?"
    exe = dlc.compile(model, (ids,), quantize=Quantize("i4", skip=("down", "*bias")), cache=False)
    assert len(exe.compile_report.quantised) == 2


def test_groups_of_activations_that_do_not_come_out_even_are_refused_where_they_are() -> None:
    model, x = torch.nn.Linear(40, 24), torch.randn(3, 40)
    with pytest.raises(UnevenActivations) as caught:
        dlc.compile(model, (x,), quantize=Quantize("i4", activation="i8", activation_group=16), cache=False)
    assert caught.value.message == "activations are to be rounded in groups of 16, and 'weight' multiplies 40 of them"
    assert str(caught.value.loc) and "None for one scale a row" in str(caught.value.help)


def test_no_example_is_no_calibration() -> None:
    with pytest.raises(BadQuantisation, match="holds no example"):
        Quantize("i4", calibrate=[])


def test_the_command_line_reports_each_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Linear(64, 32), (torch.zeros(2, 64),)\n"
    )
    arguments = ["compile", f"{source}:make", "-o", str(tmp_path / "m.dlc"), "--quantize", "i4:g32"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "1 matrices quantised: 1.1 KiB, 4.50 bits per weight" in said
    assert "weight  32 x 64  i4 4.50 bits  error: weights" in said
    assert main([*arguments, "--format", "json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["quantised"] or [
        {"type": "i4"}
    ]  # nothing is told of what the cache gives
    assert layer["type"] == "i4"


def test_the_dump_has_the_errors(tmp_path: Path) -> None:
    model, ids = tied()
    dlc.compile(model, (ids,), quantize="i4", dump_dir=tmp_path)
    layers: list[dict[str, Any]] = json.loads((tmp_path / "quantisation.json").read_text())
    assert {layer["type"] for layer in layers} == {"i4"} and all(0 < layer["weight_error"] < 0.2 for layer in layers)
    assert replace(Quantize("i4"), group=64).group == 64


class Attention(torch.nn.Module):
    """Two heads of 32, and the layer that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (2, 32)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("quantize", ["i6:g32", "u4:g32:a=i8"])
def test_a_layer_behind_attention_streams_its_weights_in_a_kernel_of_its_own(quantize: str) -> None:
    """Where a group of weights is a head, the sum over it would fit into the tasks of the attention."""
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 12, 64)
    length = torch.export.Dim("length", min=2, max=512)
    exe = dlc.compile(model, (x,), dynamic_shapes=({1: length},), quantize=quantize, cache=False)
    want = model(x).detach().numpy()
    assert np.abs(exe(x).detach().numpy() - want).max() < 0.2 * np.abs(want).max()


@pytest.mark.parametrize("weights", ["i4", "u4", "u1", "b2", "t2", "f4e2m1", "u4:z=real", "i8:z=real", "u5:a=i8", "b3:s=f8e8m0"])
@pytest.mark.parametrize("value", [0.0, -0.37])
def test_a_matrix_of_one_number(weights: str, value: float) -> None:
    """As what is initialised with zeros has it; a type without 0 has the least scale then."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(40, 24), torch.randn(3, 40)
    torch.nn.init.constant_(model.weight, value)
    got, want = dlc.compile(model, (x,), quantize=weights, cache=False)(x).detach().numpy(), model(x).detach().numpy()
    step = 2 if weights.endswith("f8e8m0") else 0.02  # a power of two is nearest
    assert np.abs(got - want).max() <= (step * np.abs(want).max() if value else 1e-5)


@pytest.mark.parametrize(("group", "activation_group"), [(32, 16), (16, 32), (48, 32), (7, 16)])
def test_groups_of_activations_beside_others_of_weights(group: int, activation_group: int) -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(96, 24), torch.randn(3, 96)
    for weights in ("u4", "f6e3m2"):
        options = Quantize(weights, group, "i8", activation_group)
        program = quantise(import_any(model, (x,), None, None, None), options)[0].program
        (want,) = run_program(program, [x.numpy()])
        got = dlc.compile(model, (x,), quantize=options, cache=False)(x).detach().numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_calibration_inputs_that_are_no_numbers_are_refused() -> None:
    model, x = torch.nn.Linear(40, 24), torch.full((3, 40), float("nan"))
    with pytest.raises(BadQuantisation, match="makes an infinity or NaN of what 'linear"):
        dlc.compile(model, (x,), quantize=Quantize("i4", calibrate=[(x,)]), cache=False)
    once: Any = ((x,) for _ in range(2))
    with pytest.raises(BadQuantisation, match="`calibrate` is a sequence of example calls"):
        Quantize("i4", calibrate=once)
