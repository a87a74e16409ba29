"""What is wrong or not supported in an ONNX model is said with a code, a place and a reason; nothing else escapes."""

from __future__ import annotations

import random as rnd
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.frontend.onnx_import import import_model
from tests.frontend.onnx_case import evaluate, parse, random


def refused(model: Any, code: str, *words: str, **options: Any) -> DlcError:
    with pytest.raises(DlcError) as caught:
        import_model(model, **options)
    error = caught.value
    assert error.code == code, error
    assert error.loc is not None and str(error.loc)
    for word in words:
        assert word in str(error), str(error)
    return error


def node_model(node: Any, inputs: dict[str, tuple[int, list[Any]]], opset: int = 18, domain: str = "") -> Any:
    """A model of one node, made without any check."""
    infos = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=9)


FLOATS = {"x": (TensorProto.FLOAT, [2, 3])}


def test_unknown_operator():
    model = node_model(helper.make_node("Frobnicate", ["x"], ["y"], name="f"), FLOATS)
    refused(model, "DLC0200", "Frobnicate because no operator of that name", "f (Frobnicate)", check=False)


def test_refused_operator_says_why():
    model = node_model(helper.make_node("RandomNormalLike", ["x"], ["y"]), FLOATS)
    error = refused(model, "DLC0200", "not supported: RandomNormalLike because random numbers", check=False)
    assert error.exit_code == 3


def test_unknown_domain():
    model = node_model(helper.make_node("Op", ["x"], ["y"], domain="com.acme"), FLOATS, domain="com.acme")
    refused(model, "DLC0247", "com.acme", check=False)


def test_unknown_opset():
    refused(node_model(helper.make_node("Relu", ["x"], ["y"]), FLOATS, opset=999), "DLC0247", "999", check=False)


def test_strings_are_refused():
    model = node_model(helper.make_node("Identity", ["x"], ["y"]), {"x": (TensorProto.STRING, [2])})
    refused(model, "DLC0248", "string", check=False)


def test_undefined_name_and_cycle():
    refused(node_model(helper.make_node("Relu", ["nope"], ["y"]), FLOATS), "DLC0242", "'nope'", check=False)
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    refused(model, "DLC0242", "'b'", check=False)
    refused(model, "DLC0241", "topologically")


def test_wrong_attribute_type():
    model = node_model(helper.make_node("Softmax", ["x"], ["y"], axis=1.5), FLOATS)
    refused(model, "DLC0243", "attribute 'axis' of Softmax: an integer is expected", check=False)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("g (float[2, 3] x, float[4, 5] w) => (float[2, 5] y) { y = MatMul(x, w) }", "inner extents 3 and 4"),
        ("g (float[2, 3] x) => (float[7] y) { s = Constant<value_ints=[7]>()  y = Reshape(x, s) }", "do not fit"),
        ("g (float[2, 3] x, float[4] w) => (float[2, 3] y) { y = Add(x, w) }", "broadcast"),
        ("g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm=[0, 0]>(x) }", "repeat"),
        ("g (float[2, 3] x) => (float[2] y) { i = Constant<value_int=9>()  y = Gather<axis=1>(x, i) }", "out of range"),
    ],
)
def test_operands_that_do_not_fit(text, word):
    refused(parse(text), "DLC0245", word)


def test_input_types_are_those_of_the_schema():
    model = node_model(helper.make_node("Relu", ["x"], ["y"]), {"x": (TensorProto.BOOL, [2])})
    refused(model, "DLC0245", "cannot be of type bool", check=False)


def test_a_function_that_calls_itself():
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[n] x) => (float[n] y) { y = own.again(x) }
        <domain: "own", opset_import: ["" : 18, "own" : 1]>
        again (a) => (b) { b = own.again(a) }"""
    refused(onnx.parser.parse_model(text), "DLC0241", "again", check=False)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\x08\x09", bytes(range(200, 255))], ids=["empty", "text", "short", "noise"]
)
def test_garbled_bytes(data):
    with pytest.raises(DlcError) as caught:
        import_model(data)
    assert caught.value.code in ("DLC0240", "DLC0241")


def test_missing_file(tmp_path):
    refused(tmp_path / "none.onnx", "DLC0240", "No such file")


def with_external(folder: Path, location: str, size: int = 48, **entries: str) -> Path:
    """A model whose weight `w` f32[3, 4] lies in another file of `size` bytes."""
    weight = numpy_helper.from_array(random(3, 4), "w")
    if size >= 0:
        (folder / "w.bin").write_bytes(weight.raw_data[:size])
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())
    return path


def test_external_data_is_read(tmp_path):
    x = random(2, 3, seed=1)
    np.testing.assert_allclose(evaluate(import_model(with_external(tmp_path, "w.bin")), [x])[0], x @ random(3, 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("../w.bin", "outside the model's folder"),
        ("a/../../w.bin", "outside the model's folder"),
        ("/etc/passwd", "absolute path"),
        ("none.bin", "does not exist"),
        ("", "names no file"),
        (".", "not a file"),
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path, location, word):
    (tmp_path / "inner").mkdir()
    refused(with_external(tmp_path / "inner", location), "DLC0244", "'w'", word)


def test_external_data_behind_a_link_is_refused(tmp_path):
    outside, inside = tmp_path / "secret.bin", tmp_path / "model"
    outside.write_bytes(bytes(48))
    inside.mkdir()
    (inside / "link.bin").symlink_to(outside)
    refused(with_external(inside, "link.bin"), "DLC0244", "link that leads outside")


@pytest.mark.parametrize(("size", "entries", "word"), [(20, {}, "48 are needed"), (48, {"length": "1000"}, "1000 bytes"), (48, {"offset": "x"}, "integers"), (48, {"offset": "-4"}, "at offset")])
def test_external_data_that_does_not_fit(tmp_path, size, entries, word):
    refused(with_external(tmp_path, "w.bin", size, **entries), "DLC0244", word)


def test_external_data_of_a_proto_without_folder(tmp_path):
    model = onnx.load(str(with_external(tmp_path, "w.bin")), load_external_data=False)
    refused(model, "DLC0244", "folder is unknown")
    import_model(model, folder=tmp_path)


# --- mutations -------------------------------------------------------------------------------------------------------

SEED_TEXT = """g (float[n, 8] x, int64[k] i) => (float[n, 4] y, float[n, 8] z) {
    w = Constant<value = float[8, 4] {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8,
        0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}>()
    h = MatMul(x, w)
    y = Softmax<axis=-1>(h)
    g = Gather<axis=1>(x, i)
    r = ReduceSum<keepdims=1>(g)
    z = Mul(x, r) }"""


def mutate(data: bytes, r: rnd.Random) -> bytes:
    """`data` with a few bytes changed, inserted or removed, or its end cut off."""
    out = bytearray(data)
    match r.randrange(4):
        case 0:
            return bytes(out[: r.randrange(len(out))])
        case 1:
            for _ in range(r.randrange(1, 4)):
                out[r.randrange(len(out))] = r.randrange(256)
        case 2:
            at = r.randrange(len(out))
            out[at:at] = r.randbytes(r.randrange(1, 6))
        case _:
            at = r.randrange(len(out))
            del out[at : at + r.randrange(1, 12)]
    return bytes(out)


def only_coded_errors(seed: int, count: int) -> None:
    r, data = rnd.Random(seed), parse(SEED_TEXT).SerializeToString()
    for _ in range(count):
        try:
            import_model(mutate(data, r))
        except DlcError as e:
            assert e.code and str(e)


def test_a_mutated_model_gives_a_coded_error_or_a_program():
    only_coded_errors(1, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_500_mutations(seed):
    only_coded_errors(seed, 100)


def test_operators_older_than_version_7_are_refused_where_they_differ():
    add = helper.make_node("Add", ["x", "x"], ["y"], broadcast=1)
    refused(node_model(add, FLOATS, opset=6), "DLC0247", "Add changed in version 7", check=False)
    import_model(node_model(helper.make_node("Neg", ["x"], ["y"]), FLOATS, opset=6), check=False)
