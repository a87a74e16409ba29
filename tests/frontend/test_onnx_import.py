"""ONNX import: names and symbols, constants, structure that the caller decides, functions, control."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.frontend.onnx_errors import NeedsStructure, NeedsValue
from dlc.frontend.onnx_import import import_for, import_model
from dlc.ir.program import If, Loop
from tests.frontend.onnx_case import check, evaluate, parse, random


def test_dim_params_are_symbols_and_equal_names_are_one():
    imported = check("g (float[n, 3] x, float[n, 3] y) => (float[n, 3] z) { z = Add(x, y) }", {"x": random(4, 3), "y": random(4, 3, seed=1)})
    assert [str(p) for p in imported.program.params] == ["x: f32[n, 3]", "y: f32[n, 3]"]


def test_one_artifact_serves_every_extent():
    imported = import_model(parse("g (float[n, m] x) => (float[m, n] y) { y = Transpose<perm=[1, 0]>(x) }"))
    for n, m in ((1, 1), (3, 5), (0, 2)):
        x = random(n, m)
        np.testing.assert_array_equal(evaluate(imported, [x])[0], x.T)


def test_unnamed_extents_that_must_agree_become_one_symbol():
    imported = check("g (float[a, 3] x, float[b, 3] y) => (float[a, 3] z) { z = Add(x, y) }", {"x": random(4, 3), "y": random(4, 3, seed=1)})
    first, second = imported.program.params
    assert first.type.shape == second.type.shape


def test_an_initializer_that_is_also_an_input_is_a_constant_unless_it_is_fed():
    weight = random(2, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = random(2, 2, seed=3)
    fixed = import_model(model)
    assert fixed.input_names == ("x",)
    np.testing.assert_allclose(evaluate(fixed, [x])[0], x @ weight, rtol=1e-5)
    fed = import_model(model, overridable=("w",))
    assert fed.input_names == ("x", "w")
    np.testing.assert_allclose(evaluate(fed, [x, x])[0], x @ x, rtol=1e-5)


SHAPES = {
    "flatten by shape": """g (float[b, c, h] x) => (float[b, k] y) {
        s = Shape<start=0, end=1>(x)
        minus = Constant<value_ints=[-1]>()
        t = Concat<axis=0>(s, minus)
        y = Reshape(x, t) }""",
    "half of an extent": """g (float[b, c, h] x) => (float[b, k, h] y) {
        s = Shape(x)
        one = Constant<value_int=1>()
        c = Gather(s, one)
        two = Constant<value_int=2>()
        half = Div(c, two)
        axes = Constant<value_ints=[0]>()
        ends = Unsqueeze(half, axes)
        zero = Constant<value_ints=[0]>()
        axis = Constant<value_ints=[1]>()
        y = Slice(x, zero, ends, axis) }""",
    "where on a shape": """g (float[b, 1, h] x) => (float[b, k, h] y) {
        s = Shape(x)
        want = Constant<value_ints=[-1, 4, -1]>()
        minus = Constant<value_ints=[-1]>()
        same = Equal(want, minus)
        target = Where(same, s, want)
        y = Expand(x, target) }""",
    "positions": """g (float[b, n] x) => (float[b, n] y) {
        s = Shape<start=1, end=2>(x)
        n = Squeeze(s)
        zero = Constant<value_int=0>()
        one = Constant<value_int=1>()
        r = Range(zero, n, one)
        f = Cast<to=1>(r)
        y = Add(x, f) }""",
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_arithmetic_never_becomes_code(name):
    shape = (2, 5) if name == "positions" else (2, 1, 3) if name.startswith("where") else (2, 4, 3)
    imported = check(SHAPES[name], {"x": random(*shape)})
    assert not imported.specialised and not imported.program.consts


def test_a_run_time_shape_is_asked_for_and_then_specialised_on():
    model = parse("g (float[a, b] x, int64[k] shape) => (float[c, d] y) { y = Reshape(x, shape) }")
    with pytest.raises(NeedsValue) as caught:
        import_model(model, examples={"x": random(2, 6), "shape": np.array([3, 4])})
    assert caught.value.names == ("shape",) and "input 'shape'" in str(caught.value)
    imported = import_for(model, {"x": random(2, 6), "shape": np.array([3, 4])})
    assert list(imported.specialised) == ["shape"]
    assert imported.input_names == ("x", "shape")


def test_sequences_and_optionals_take_their_structure_from_examples():
    text = """g (seq(float[n]) s, int64 at) => (float[n] y) { y = SequenceAt(s, at) }"""
    model = parse(text)
    with pytest.raises(NeedsStructure):
        import_model(model)
    items = [random(2), random(3, seed=1)]
    imported = import_for(model, {"s": items, "at": np.array(1)})
    np.testing.assert_array_equal(evaluate(imported, [*items, np.array(1)])[0], items[1])


def test_a_model_local_function_is_expanded_with_its_attributes():
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        g (float[n] x) => (float[n] y) { y = own.twice<alpha=0.5>(x) }
        <domain: "own", opset_import: ["" : 18]>
        twice <alpha> (a) => (c) { b = LeakyRelu<alpha: float=@alpha>(a)
            c = Add(b, b) }"""
    x = random(7)
    imported = import_model(onnx.parser.parse_model(text))
    np.testing.assert_allclose(evaluate(imported, [x])[0], 2 * np.where(x < 0, 0.5 * x, x), rtol=1e-6)


CONTROL = {
    "if": """g (bool c, float[n] x) => (float[n] y) {
        y = If (c) <then_branch = t () => (float[n] a) { a = Neg(x) }, else_branch = e () => (float[n] b) { b = Exp(x) }> }""",
    "loop": """g (int64 m, float[2] x) => (float[2] last, float[k, 2] all) {
        go = Constant<value = bool {1}>()
        last, all = Loop (m, go, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w, float[2] o)
            { d = Identity(c)  w = Add(v, v)  o = Identity(w) }> }""",
    "while": """g (float[2] x) => (float[2] last) {
        m = Constant<value_int=9>()
        go = Constant<value = bool {1}>()
        limit = Constant<value_float=50.0>()
        last = Loop (m, go, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
            { w = Add(v, v)  s = ReduceMax<keepdims=0>(w)  d = Less(s, limit) }> }""",
    "scan": """g (float[3] h, float[t, 3] x) => (float[3] last, float[t, 3] all) {
        last, all = Scan<num_scan_inputs = 1, body = b (float[3] s, float[3] v) => (float[3] n, float[3] o)
            { n = Add(s, v)  o = Identity(n) }> (h, x) }""",
    "scan of branches": """g (float h, float[t] x) => (float last, float[t] all, float[t] sums) {
        last, all = Scan<num_scan_inputs = 1, body = b (float s, float v) => (float n, float o)
            { z = Constant<value_float=0.0>()  c = Greater(v, z)
              n = If (c) <then_branch = p () => (float a) { a = Add(s, v) }, else_branch = q () => (float d) { d = Mul(s, v) }>
              o = Identity(n) }> (h, x)
        sums = Add(all, x) }""",
    "scan of loops": """g (int64 m, float[t, 3] x) => (float[3] last, float[t, 3] all) {
        h = Constant<value_floats=[0.0, 0.0, 0.0]>()
        go = Constant<value = bool {1}>()
        last, all = Scan<num_scan_inputs = 1, body = b (float[3] s, float[3] v) => (float[3] n, float[3] o)
            { n = Loop (m, go, s) <body = l (int64 i, bool c, float[3] g) => (bool d, float[3] w)
                { w = Add(g, v)  r = ReduceMax<keepdims=0>(w)  top = Constant<value_float=2.0>()  d = Less(r, top) }>
              o = Identity(n) }> (h, x) }""",
}


def inputs_of(name: str) -> dict[str, object]:
    x = np.abs(random(2)) + 0.5
    return {
        "if": {"c": np.array(False), "x": random(5)},
        "loop": {"m": np.array(3), "x": x},
        "while": {"x": x},
        "scan": {"h": random(3), "x": random(4, 3)},
        "scan of branches": {"h": np.float32(1).reshape(()), "x": random(6)},
        "scan of loops": {"m": np.array(4), "x": np.abs(random(4, 3))},
    }[name]


@pytest.mark.parametrize("name", CONTROL)
def test_control(name):
    check(CONTROL[name], inputs_of(name))


def test_a_branch_that_only_run_time_decides_stays_a_branch():
    imported = import_model(parse(CONTROL["if"]))
    assert any(isinstance(s, If) for s in imported.program.body.body)
    x = random(5)
    for c, want in ((True, -x), (False, np.exp(x))):
        np.testing.assert_allclose(evaluate(imported, [np.array(c), x])[0], want, rtol=1e-6)


def test_a_run_time_trip_count_stays_a_loop():
    imported = import_model(parse(CONTROL["loop"]))
    assert any(isinstance(s, Loop) for s in imported.program.body.body)
    for m in (0, 1, 4):
        last, every = evaluate(imported, [np.array(m), np.ones(2, np.float32)])
        assert every.shape == (m, 2) and last[0] == 2.0**m


def test_a_branch_on_an_extent_is_decided_by_the_example_and_its_range_is_kept():
    text = """g (float[n, m] x) => (float[k] y) {
        s = Shape(x)
        one = Constant<value_int=1>()
        m = Gather(s, one)
        c = Equal(m, one)
        axes = Constant<value_ints=[1]>()
        y = If (c) <then_branch = t () => (float[k] a) { a = Squeeze(x, axes) }, else_branch = e () => (float[n, m] b) { b = Identity(x) }> }"""
    model = parse(text)
    imported = import_for(model, {"x": random(3, 1)})
    symbols = {s.name: s for s in imported.program.symbols}
    assert (symbols["m"].lo, symbols["m"].hi) == (1, 1)
    with pytest.raises(NeedsStructure):
        import_model(model)


def test_bytes_paths_and_protos_give_the_same_program(tmp_path):
    model = parse("g (float[n] x) => (float[n] y) { y = Tanh(x) }")
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    texts = {str(import_model(m).program) for m in (model, path, str(path), path.read_bytes())}
    assert len(texts) == 1


SLICES = {
    "last of a symbolic count": ("s = Shape<start=1, end=2>(x)  starts = Neg(s)", 1),
    "all but two": ("s = Shape<start=1, end=2>(x)  two = Constant<value_ints=[2]>()  starts = Sub(s, two)", 3),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_from_symbolic_places(name):
    start, least = SLICES[name]
    text = f"g (float[n, m] x) => (float[n, k] y) {{ {start}  ends = Constant<value_ints=[9999]>()  axes = Constant<value_ints=[1]>()  y = Slice(x, starts, ends, axes) }}"
    for m in (least, 5):
        check(text, {"x": random(2, m)})


def test_a_reshape_that_needs_an_even_extent_says_so():
    imported = import_model(parse("g (float[n] x) => (float[a, 2] y) { s = Constant<value_ints=[-1, 2]>()  y = Reshape(x, s) }"))
    assert [str(p) for p in imported.program.params] == ["x: f32[2*n_by_2]"]
    evaluate(imported, [random(4)])
    with pytest.raises(DlcError):
        evaluate(imported, [random(3)])
