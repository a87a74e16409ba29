"""Operators whose meaning or form changed between operator sets: attributes that became inputs, softmax over many dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontend.onnx_case import check, evaluate, parse, random
from dlc.frontend.onnx_import import import_model

OLD = {
    "slice": (7, "g (float[4, 6] x) => (float[2, 3] y) { y = Slice<starts=[1, -4], ends=[3, 100], axes=[0, 1]>(x) }"),
    "squeeze": (7, "g (float[4, 1, 6] x) => (float[4, 6] y) { y = Squeeze<axes=[1]>(x) }"),
    "unsqueeze": (7, "g (float[4, 6] x) => (float[1, 4, 6, 1] y) { y = Unsqueeze<axes=[0, 3]>(x) }"),
    "split": (7, "g (float[4, 6] x) => (float[4, 2] y, float[4, 4] z) { y, z = Split<axis=1, split=[2, 4]>(x) }"),
    "split evenly": (7, "g (float[4, 6] x) => (float[2, 6] y, float[2, 6] z) { y, z = Split(x) }"),
    "sum axes": (11, "g (float[4, 6] x) => (float[4, 1] y) { y = ReduceSum<axes=[1]>(x) }"),
    "mean axes": (13, "g (float[4, 6] x) => (float[4] y) { y = ReduceMean<axes=[-1], keepdims=0>(x) }"),
    "clip": (7, "g (float[4, 6] x) => (float[4, 6] y) { y = Clip<min=-0.5, max=0.25>(x) }"),
    "clip below": (10, "g (float[4, 6] x) => (float[4, 6] y) { y = Clip<min=-0.5>(x) }"),
    "dropout": (7, "g (float[4, 6] x) => (float[4, 6] y) { y = Dropout<ratio=0.3>(x) }"),
    "cast": (7, "g (float[4, 6] x) => (int32[4, 6] y) { y = Cast<to=6>(x) }"),
    "argmax": (7, "g (float[4, 6] x) => (int64[4, 1] y) { y = ArgMax<axis=1>(x) }"),
    "expand": (8, "g (float[4, 6] x) => (float[2, 4, 6] y) { s = Constant<value = int64[3] {2, 4, 6}>()  y = Expand(x, s) }"),
    "softmax": (9, "g (float[4, 6] x) => (float[4, 6] y) { y = Softmax<axis=1>(x) }"),
}


@pytest.mark.parametrize("name", OLD)
def test_old_forms(name):
    opset, text = OLD[name]
    check(parse(text, opset), {"x": random(4, 1, 6) if name == "squeeze" else random(4, 6)})


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_before_13_flattens_from_its_axis(axis):
    x = random(2, 3, 4)
    imported = import_model(parse(f"g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{ y = Softmax<axis={axis}>(x) }}", 11))
    flat = x.reshape(int(np.prod(x.shape[: axis % 3])), -1) if axis % 3 else x.reshape(1, -1)
    e = np.exp(flat - flat.max(-1, keepdims=True))
    np.testing.assert_allclose(evaluate(imported, [x])[0], (e / e.sum(-1, keepdims=True)).reshape(x.shape), rtol=1e-5)


def test_pad_by_attribute():
    x = random(2, 3)
    imported = import_model(parse('g (float[2, 3] x) => (float[4, 3] y) { y = Pad<mode="constant", pads=[2, 0, 0, 0], value=1.5>(x) }', 10))
    np.testing.assert_array_equal(evaluate(imported, [x])[0], np.pad(x, ((2, 0), (0, 0)), constant_values=1.5))


@pytest.mark.parametrize(("opset", "text"), [
    (7, 'y = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]>(x)'),
    (9, 's = Constant<value = float[4] {1.0, 1.0, 2.0, 3.0}>()  y = Upsample<mode="nearest">(x, s)'),
    (10, 's = Constant<value = float[4] {1.0, 1.0, 2.0, 3.0}>()  y = Resize<mode="nearest">(x, s)'),
])  # fmt: skip
def test_upsampling(opset, text):
    x = random(1, 2, 3, 4)
    imported = import_model(parse(f"g (float[1, 2, h, w] x) => (float[1, 2, a, b] y) {{ {text} }}", opset), check=False)
    np.testing.assert_array_equal(evaluate(imported, [x])[0], x.repeat(2, 2).repeat(3, 3))


def test_topk_by_attribute():
    x = random(3, 7)
    imported = import_model(parse("g (float[3, 7] x) => (float[3, 2] v, int64[3, 2] i) { v, i = TopK<k=2, axis=1>(x) }", 7))
    order = np.argsort(-x, 1)[:, :2]
    np.testing.assert_array_equal(evaluate(imported, [x])[1], order)


def test_batch_normalisation_7():
    x, s = random(2, 3, 4), np.abs(random(3)) + 0.5
    text = "g (float[2, 3, 4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2, 3, 4] y) { y = BatchNormalization(x, s, b, m, v) }"
    imported = import_model(parse(text, 8))
    wide = s[:, None]
    want = (x - wide) / np.sqrt(wide + 1e-5) * wide + wide
    np.testing.assert_allclose(evaluate(imported, [x, s, s, s, s])[0], want, rtol=1e-5, atol=1e-6)


def test_mod_and_division_of_integers():
    a = np.array([7, -7, 7, -7, -(2**31)], np.int32)
    b = np.array([3, 3, -3, -3, -1], np.int32)
    text = "g (int32[n] a, int32[n] b) => (int32[n] q, int32[n] m, int32[n] f) { q = Div(a, b)  m = Mod(a, b)  f = Mod<fmod=1>(a, b) }"
    q, m, f = evaluate(import_model(parse(text, 14)), [a, b])
    np.testing.assert_array_equal(q, [2, -2, -2, 2, -(2**31)])
    np.testing.assert_array_equal(m, [1, 2, -2, -1, 0])
    np.testing.assert_array_equal(f, [1, -1, 1, -1, 0])


def test_casts_saturate_and_wrap():
    text = "g (float[n] x, int32[n] i) => (int8[n] a, int8[n] b, bool[n] c) { a = Cast<to=3>(x)  b = Cast<to=3>(i)  c = Cast<to=9>(x) }"
    x, i = np.array([300.0, -300.0, np.nan, 1.9], np.float32), np.array([300, -300, 1, -1], np.int32)
    a, b, c = evaluate(import_model(parse(text)), [x, i])
    np.testing.assert_array_equal(a, [127, -128, 0, 1])
    np.testing.assert_array_equal(b, [44, -44, 1, -1])
    np.testing.assert_array_equal(c, [True, True, True, True])


def test_nan_propagates():
    x = np.array([np.nan, 1.0, -1.0], np.float32)
    text = "g (float[3] x) => (float[3] r, float[3] c, float m) { r = Relu(x)  z = Constant<value_float=0.0>()  c = Clip(x, z)  m = ReduceMax<keepdims=0>(x) }"
    r, c, m = evaluate(import_model(parse(text)), [x])
    assert np.isnan(r[0]) and np.isnan(c[0]) and np.isnan(m)


def test_empty_tensors():
    text = "g (float[n, 3] x) => (float[3] s, float[3] p, float[3] m) { a = Constant<value_ints=[0]>()  s = ReduceSum<keepdims=0>(x, a)  p = ReduceProd<keepdims=0>(x, a)  m = ReduceMax<keepdims=0>(x, a) }"
    s, p, m = evaluate(import_model(parse(text)), [np.zeros((0, 3), np.float32)])
    assert (s == 0).all() and (p == 1).all() and (m == -np.inf).all()


def test_values_that_arrive_at_run_time_become_extents():
    text = "g (int64 n, float[4] x) => (float[a] v, int64[a] i, int64[b] r) { z = Constant<value_int=0>()  o = Constant<value_int=1>()  s = Constant<value_ints=[0]>()  k = Unsqueeze(n, s)  v, i = TopK<axis=0>(x, k)  r = Range(z, n, o) }"
    imported = import_model(parse(text))
    assert not imported.specialised
    x = random(4)
    for n in (0, 1, 3):
        v, _, r = evaluate(imported, [np.array(n), x])
        np.testing.assert_array_equal(v, np.sort(x)[::-1][:n])
        np.testing.assert_array_equal(r, np.arange(n))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "pad", "extra", "dilation"), [(2, 2, 0, 0, 1), (3, 2, 1, 1, 1), (4, 3, 1, 0, 1), (3, 1, 1, 0, 2), (3, 2, 0, 0, 2)])
def test_transposed_convolution(group, kernel, stride, pad, extra, dilation):
    w = random(4, 3, kernel, kernel, seed=2)
    numbers = ", ".join(map(repr, w.ravel().tolist()))
    attributes = f"group={group}, strides=[{stride}, {stride}], pads=[{pad}, {pad}, {pad}, {pad}], output_padding=[{extra}, {extra}], dilations=[{dilation}, {dilation}]"
    text = f"g (float[n, 4, 5, 6] x, float[{3 * group}] b) => (float[n, c, h, v] y) {{ w = Constant<value = float[4, 3, {kernel}, {kernel}] {{{numbers}}}>()  y = ConvTranspose<{attributes}>(x, w, b) }}"
    x, b = random(2, 4, 5, 6), random(3 * group, seed=5)
    import torch

    want = torch.nn.functional.conv_transpose2d(*map(torch.from_numpy, (x, w, b)), stride, pad, extra, group, dilation)
    got = evaluate(import_model(parse(text)), [x, b])[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_pooling_kernel_larger_than_its_input():
    text = "g (float[1, 2, 3, 3] x) => (float[1, 2, a, b] y, float[1, 2, a, b] z) { y = AveragePool<ceil_mode=1, kernel_shape=[99, 99], strides=[99, 99]>(x)  z = MaxPool<ceil_mode=1, kernel_shape=[99, 99], strides=[99, 99]>(x) }"
    x = random(1, 2, 3, 3)
    imported = import_model(parse(text, 19))
    mean, most = evaluate(imported, [x])
    np.testing.assert_allclose(mean.ravel(), x.mean((2, 3)).ravel(), rtol=1e-5)
    np.testing.assert_array_equal(most.ravel(), x.max((2, 3)).ravel())
    assert "99" not in str(imported.program)
