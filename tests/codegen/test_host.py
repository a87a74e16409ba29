"""The native entry: control flow, memory and run-time extents of programs, against the interpreter."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.codegen.target import BASELINE
from dlc.compiler import compile_program
from dlc.errors import Unsupported
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.runtime.executable import Executable

sys.path.insert(0, str(Path(__file__).parent))
from scalar_lower import lower

KERNELS = """
kernel over (i) inc(x: f32[n]) -> (y) symbols (n in 0..) {
  y[i:n]: f32 = x[i] + 1.0
}
kernel over (i) add(a: f32[n], b: f32[n]) -> (y) symbols (n in 0..) {
  y[i:n]: f32 = a[i] + b[i]
}
kernel over () below(k: i64[]) -> (c) {
  c[]: bool = k[] < 5
}
kernel over () next(k: i64[]) -> (l) {
  l[]: i64 = k[] + 1
}
kernel over () total(x: f32[n]) -> (s) symbols (n in 0..) {
  s[]: f32 = sum(i:n) x[i]
}
kernel over () positive(s: f32[]) -> (c) {
  c[]: bool = s[] > 0.0
}
"""


def executable(text: str, threads: int = 2) -> tuple[Executable, Any]:
    program = parse_program(KERNELS + text)
    return compile_program(program, BASELINE, threads=threads, lower=lower), program


def agree(text: str, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Run natively twice (memory is reused) and compare with the interpreter."""
    exe, program = executable(text)
    want = run_program(program, list(inputs))
    for _ in range(2):
        got = exe(*inputs)
        got = got if isinstance(got, tuple) else (got,)
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(a, b)
    return got


X = np.arange(7, dtype=np.float32)


def test_what_leaves_the_arena_comes_back_into_another_buffer() -> None:
    """`a` leaves twice and is copied out once; between, its memory is another's."""
    text = """program p(x: f32[n]) -> (f) symbols (n in 0..) {
  (a) = launch inc(x)
  spill a
  (b) = launch inc(x)
  (c) = launch add(b, b)
  fill a
  (d) = launch add(a, c)
  spill a
  (e) = launch add(d, d)
  fill a
  (f) = launch add(a, e)
}"""
    agree(text, X)
    exe, _ = executable(text)
    assert exe.manifest["spill_bytes"] == 64
    names = [b["name"] for b in exe.manifest["buffers"]]
    assert names.count("a") == 3
    assert len([b for b in exe.manifest["buffers"] if b["name"] == "a" and b["first"] == b["last"]]) == 0


def test_launches_share_the_arena() -> None:
    agree(
        """program p(x: f32[n]) -> (d) symbols (n in 0..) {
  (a) = launch inc(x)
  (b) = launch inc(a)
  (c) = launch add(a, b)
  (d) = launch add(c, x)
}""",
        X,
    )


def test_outputs_that_no_kernel_writes() -> None:
    from dataclasses import replace

    program = parse_program(
        KERNELS
        + """program p(x: f32[n]) -> (x, a, a, w) symbols (n in 0..) {
  const w: f32[3]
  (a) = launch inc(x)
}"""
    )
    program = replace(program, data={"w": np.float32([1, 2, 3])})
    exe = compile_program(program, BASELINE, lower=lower)
    x, a, again, w = exe(X)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(a, X + 1)
    np.testing.assert_array_equal(again, X + 1)
    np.testing.assert_array_equal(w, [1, 2, 3])
    assert x is not X and a is not again


@pytest.mark.parametrize("sign", [1, -1])
def test_if_yields_new_and_old_tensors(sign: int) -> None:
    agree(
        """program p(x: f32[n]) -> (r, z, q) symbols (n in 0..) {
  (s) = launch total(x)
  (c) = launch positive(s)
  (o) = launch inc(x)
  if c {
    (a) = launch inc(x)
    (b) = launch inc(a)
    yield (b, o)
  } else {
    (d) = launch add(x, x)
    yield (d, x)
  } -> (r, q)
  (z) = launch add(r, q)
}""",
        X * sign,
    )


FOR = """program p(x: f32[n], y: f32[n]) -> (%s) symbols (n in 0..) {
  for t in 0.. < 6 carry (h = x, g = y, old = x, k = y) {
    (u) = launch inc(h)
    (v) = launch add(u, g)
    (w) = launch add(v, old)
    yield (w, h, g, y)
  } -> (h1, g1, old1, k1) stack (S = w) stack (S2 = w) stack (P = h)
  (z) = launch add(h1, g1)
}"""


@pytest.mark.parametrize("results", ["h1, g1, old1, k1, S, S2, P, z", "z", "g1, S2", "P, h1"])
def test_for_carries_are_not_overwritten(results: str) -> None:
    agree(FOR % results, X, X[::-1].copy())


def test_for_without_stack_uses_two_buffers() -> None:
    text = """program p(x: f32[n], y: f32[n]) -> (h1, g1) symbols (n in 0..) {
  for t in 0.. < n carry (h = x, g = y) {
    (u) = launch add(h, g)
    (w) = launch inc(u)
    yield (w, h)
  } -> (h1, g1)
}"""
    agree(text, X, X[::-1].copy())
    agree(text, X[:0], X[:0])
    agree(text, X[:1], X[:1])
    agree(text, X[:2], X[:2])


def test_nested_loops_and_a_branch() -> None:
    agree(
        """program p(x: f32[n]) -> (h1, S) symbols (n in 0..) {
  for t in 0.. < 3 carry (h = x) {
    for u in 0.. < 4 carry (g = h) {
      (a) = launch inc(g)
      (s) = launch total(a)
      (c) = launch positive(s)
      if c {
        (b) = launch add(a, x)
        yield (b)
      } else {
        yield (g)
      } -> (r)
      yield (r)
    } -> (g1) stack (T = g)
    (m) = launch add(g1, h)
    yield (m)
  } -> (h1) stack (S = T)
}""",
        X - 4,
    )


LOOP = """program p(x: f32[n], k0: i64[]) -> (h1, k1, ys, ks, is) symbols (n in 0..) {
  (c0) = launch below(k0)
  loop i while c0 carry (h = x, k = k0) {
    (h2) = launch inc(h)
    (k2) = launch next(k)
    (c) = launch below(k2)
    yield (c, h2, k2, h2, k, i)
  } -> (h1, k1) collect (ys, ks, is) upto m in 0..
}"""


@pytest.mark.parametrize("start", [5, 4, 0, -40])
def test_while_loop_collects_and_grows(start: int) -> None:
    agree(LOOP, X, np.int64(start))


@pytest.mark.parametrize("limit", [0, 1, 3, 30])
def test_counted_loop(limit: int) -> None:
    agree(
        """program p(x: f32[n], N: i64[]) -> (h1, ys, z) symbols (n in 0..) {
  loop i < N carry (h = x, g = x) {
    (h2) = launch add(h, g)
    yield (h2, h, h2)
  } -> (h1, g1) collect (ys) upto m in 0..1000
  (z) = launch add(h1, g1)
}""",
        X,
        np.int64(limit),
    )


BIND = """
kernel over (i) ramp() -> (y) symbols (m in 0..) {
  y[i:m]: f32 = cast<f32>(i)
}
kernel over (i) grow(a: f32[m]) -> (y) symbols (m in 0..) {
  y[i:m]: f32 = a[i] + 1.0
}
program p(x: f32[n], k: %s) -> (%s) symbols (n in 0..) {
  (a) = launch inc(x)
  bind m in %s = k
  (r) = launch ramp()
  (q) = launch grow(r)
  (w) = launch grow(q)
}"""


@pytest.mark.parametrize("dtype", ["i64[1]", "u8[1]", "i32[1, 1]", "i64[]", "u16[]"])
@pytest.mark.parametrize("limits", ["0..", "0..100", "1..10000000 by 3"])
@pytest.mark.parametrize("results", ["w, r, a", "q, q, w"])
def test_extents_found_at_run_time(dtype: str, limits: str, results: str) -> None:
    from dlc.ir.dtype import DTYPES

    kind, shape = dtype.split("[")
    value = np.full([1] * (shape.count("1")), 9, DTYPES[kind].numpy)
    agree(BIND % (dtype, results, limits), X, value)


PART = """\
kernel over (i) part(a: f32[7]) -> (y) symbols (m in 0..) {
  y[i:min(m, 7)]: f32 = a[i]
}
kernel over () soft(a: f32[%s]) -> (y) symbols (m in 0..) {
  t[]: f32 = max(i:%s) a[i]
  e[j:%s]: f32 = exp(a[j] - t[])
  z[]: f32 = sum(i:%s) e[i]
  y[j:%s]: f32 = e[j] / z[]
}
kernel over () half(k: i64[]) -> (n) {
  n[]: i64 = k[] // 2
}
program p(x: f32[7], k: i64[]) -> (y) {
  (n) = launch half(k)
  bind m in 0.. = n
  (a) = launch part(x)
  (y) = launch soft(a)
}"""


@pytest.mark.parametrize("k", [0, 1, 3, 10, 15, 1000])
def test_scratch_memory_of_an_extent_with_a_bound_in_its_text(k: int) -> None:
    """Whatever is found at run time, it is no more than `min` says."""
    program = parse_program(PART % (("min(m, 7)",) * 5))
    x = np.arange(7, dtype=np.float32)
    (want,) = run_program(program, [x, np.int64(k)])
    got = compile_program(program, BASELINE)(x, np.int64(k))
    assert got.shape == want.shape == (min(k // 2, 7),)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scratch_memory_without_a_bound_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"soft because its scratch memory depends on m, which is only known at run time"):
        compile_program(parse_program((PART % (("m",) * 5)).replace("y[i:min(m, 7)]: f32 = a[i]", "y[i:m]: f32 = a[i % 7]")), BASELINE)


def test_extent_outside_its_bounds_is_an_error() -> None:
    exe, _ = executable(BIND % ("i64[1]", "w", "2..10"))
    for wrong in (1, 11, -1, 2**62):
        with pytest.raises(Exception, match=r"DLC0541.*'m'.*2\.\.10"):
            exe(X, np.int64([wrong]))
    assert exe(X, np.int64([2])).shape == (2,)


def test_negative_extent_without_a_bound_is_an_error() -> None:
    exe, _ = executable(BIND % ("i64[1]", "w", "0.."))
    with pytest.raises(Exception, match=r"DLC0541.*the extent 'm' found at run time is not at least 0"):
        exe(X, np.int64([-3]))


def test_memory_for_an_extent_may_be_refused() -> None:
    exe, _ = executable(BIND % ("i64[1]", "w", "0.."))
    with pytest.raises(Exception, match="DLC054[13]"):
        exe(X, np.int64([2**40]))
    with pytest.raises(Exception, match="DLC0541"):
        exe(X, np.int64([2**61]))


def test_calls_from_several_threads_at_once() -> None:
    exe, program = executable(FOR % "h1, S, P, z")
    inputs = [(np.random.default_rng(i).random(50 + i, np.float32), np.ones(50 + i, np.float32)) for i in range(4)]
    want = [run_program(program, list(pair)) for pair in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            got = exe(*inputs[number])
            if not all(np.array_equal(a, b) for a, b in zip(got, want[number], strict=True)):
                wrong.append(number)

    team = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert not wrong


def test_profile_counts_every_launch() -> None:
    exe, _ = executable(FOR % "z")
    profile = exe.profile(X, X)
    assert [row.name for row in profile.rows] == ["inc", "add", "add", "add"]
    assert all(row.time_ns > 0 for row in profile.rows)
