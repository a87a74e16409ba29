"""Whole compiled programs by content: what makes another key, what is kept, and that every failure is only a slower compile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlc
import dlc.compiler
from dlc.importing import import_any
from dlc.ir.builder import Builder
from dlc.ir.dtype import F32
from dlc.ir.expr import apply, const
from dlc.program_cache import ProgramCache, compiler_digest, program_key


def program(weight: np.ndarray | None = None, factor: float = 2.0, name: str = "net") -> Any:
    b = Builder(name)
    x = b.input("x", F32, (b.symbol("n", 1), 6))
    w = b.constant(np.eye(6, dtype=np.float32) if weight is None else weight, "w")
    y = b.contract("y", "nk,mk->nm", x, w)
    return b.finish([b.map("z", lambda u: apply("mul", u, const(factor)), y)])


def imported(*args: Any, **kwargs: Any) -> Any:
    return import_any(program(*args, **kwargs), None, None, None, None, None)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and every program worth keeping."""
    monkeypatch.setenv("DLC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dlc.compiler, "_WORTH_KEEPING_S", 0.0)
    return tmp_path


def test_the_key_covers_what_the_result_depends_on() -> None:
    base = program_key(imported(), ("avx512", "passes"))
    assert base == program_key(imported(), ("avx512", "passes")), "equal programs, equal keys"
    one_bit = np.eye(6, dtype=np.float32)
    one_bit[5, 0] = np.float32(-0.0)
    others = [
        program_key(imported(one_bit), ("avx512", "passes")),
        program_key(imported(factor=2.5), ("avx512", "passes")),
        program_key(imported(), ("avx2", "passes")),
        program_key(imported(), ("avx512", "passes", "")),
        program_key(imported(), ("avx512passes",)),
        program_key(imported(name="other"), ("avx512", "passes")),
        program_key(replace(imported(), input_names=("y",)), ("avx512", "passes")),
        program_key(replace(imported(), mutated=(("x", 0),)), ("avx512", "passes")),
        program_key(replace(imported(), specialised={"x": np.array([2, 3])}), ("avx512", "passes")),
        program_key(replace(imported(), specialised={"x": np.array([3, 2])}), ("avx512", "passes")),
    ]
    assert len({base, *others}) == 11


def test_large_constants_count_to_the_last_byte() -> None:
    """Chunks are hashed by several threads; none is left out, and their order counts."""
    size = (8 << 20) // 4 + 5
    big = np.zeros((size, 1), np.float32)

    def key(array: np.ndarray) -> str:
        b = Builder("big")
        x = b.input("x", F32, (1,))
        w = b.constant(array, "w")
        return program_key(import_any(b.finish([b.map("y", lambda u, v: apply("add", u, v), w, x)]), None, None, None, None, None), ())

    base = key(big)
    for place in (0, size // 2, size - 1):
        other = big.copy()
        other[place] = 1
        assert key(other) != base
    assert key(big.copy()) == base


def test_the_compiler_is_part_of_the_key() -> None:
    assert len(compiler_digest()) == 64
    assert compiler_digest() == compiler_digest()


def test_an_unchanged_program_is_loaded(kept: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    first = dlc.compile(program())
    assert not first.compile_report.from_cache
    second = dlc.compile(program())
    assert second.compile_report.from_cache and "program cache" in str(second.compile_report)
    np.testing.assert_array_equal(first(x), second(x))
    assert not dlc.compile(program(factor=3.0)).compile_report.from_cache
    assert not dlc.compile(program(), target="baseline").compile_report.from_cache
    assert not dlc.compile(program(), cache=False).compile_report.from_cache
    assert len(list((kept / "programs").glob("*.dlc"))) == 3


def test_a_dump_is_never_served_from_the_cache(kept: Path, tmp_path: Path) -> None:
    dlc.compile(program())
    exe = dlc.compile(program(), dump_dir=tmp_path / "dump")
    assert not exe.compile_report.from_cache and (tmp_path / "dump" / "index.html").exists()


def test_damage_is_a_miss(kept: Path) -> None:
    x = np.ones((2, 6), np.float32)
    want = dlc.compile(program())(x)
    (entry,) = (kept / "programs").glob("*.dlc")
    data = entry.read_bytes()
    for bad in (b"", data[:100], data[:-1], bytes([data[0] ^ 1]) + data[1:], data[: len(data) // 2] + b"\0" * (len(data) // 2)):
        entry.write_bytes(bad)
        exe = dlc.compile(program())
        assert not exe.compile_report.from_cache
        np.testing.assert_array_equal(exe(x), want)
        assert dlc.compile(program()).compile_report.from_cache, "and it is mended"


def test_the_oldest_go_first(tmp_path: Path) -> None:
    exe = dlc.compile(program())
    cache = ProgramCache(tmp_path, limit_bytes=1 << 40)
    for n in range(4):
        cache.put(f"k{n}", exe)
        os.utime(cache.folder / f"k{n}.dlc", (n, n))
    size = (cache.folder / "k0.dlc").stat().st_size
    assert cache.get("k0", None) is not None, "which makes it the youngest"
    small = ProgramCache(tmp_path, limit_bytes=int(3.2 * size))
    small.put("k4", exe)
    assert {p.stem for p in cache.folder.glob("*.dlc")} >= {"k0", "k4"}
    assert not (cache.folder / "k1.dlc").exists()


def test_no_folder_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DLC_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(dlc.compiler, "_WORTH_KEEPING_S", 0.0)
    for _ in range(2):
        assert dlc.compile(program())(np.ones((1, 6), np.float32)).shape == (1, 6)


def test_many_threads_at_once(kept: Path) -> None:
    results: list[np.ndarray] = []

    def work() -> None:
        results.append(dlc.compile(program(), threads=1)(np.ones((1, 6), np.float32)))

    team = [threading.Thread(target=work) for _ in range(4)]
    for t in team:
        t.start()
    for t in team:
        t.join()
    assert len(results) == 4 and all((r == 2).all() for r in results)
    assert len(list((kept / "programs").iterdir())) == 1, "no half-written files are left"


CHILD = """
import sys, numpy as np, dlc
exe = dlc.compile(open(sys.argv[1]).read(), threads=1)
print(exe.compile_report.from_cache, exe(np.ones((2, 3), np.float32)).sum())
"""


def test_another_process_finds_it(kept: Path, tmp_path: Path) -> None:
    text = tmp_path / "net.ein"
    text.write_text("cascade net(X: f32[n, 3]) -> (Y) { Y[n, i:3] = X[n, i] * 3.0 }")
    dlc.compile(text.read_text())
    done = subprocess.run([sys.executable, "-c", CHILD, str(text)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "18.0"], done.stderr
