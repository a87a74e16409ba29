"""The object loader: what it links, what it refuses, and that no damage ever gets past its checks."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dlc.errors import DlcError
from dlc.runtime.elf import load_objects
from dlc.runtime.errors import BadObject, UnresolvedSymbol

EVERY = bool(os.environ.get("DLC_TEST_ALL"))

ADD = "llvm.func @add(%a: i64, %b: i64) -> i64 { %c = llvm.add %a, %b : i64  llvm.return %c : i64 }"
TWICE = """
llvm.func @add(i64, i64) -> i64
llvm.func @twice(%a: i64) -> i64 { %c = llvm.call @add(%a, %a) : (i64, i64) -> i64  llvm.return %c : i64 }
llvm.func @where() -> !llvm.ptr { %c = llvm.mlir.addressof @add : !llvm.ptr  llvm.return %c : !llvm.ptr }
"""
DATA = """
llvm.mlir.global internal constant @table(dense<[3, 5, 7]> : tensor<3xi64>) : !llvm.array<3 x i64>
llvm.mlir.global internal @counter(10 : i64) : i64
llvm.mlir.global internal @zeros() : !llvm.array<8 x i64> {
  %z = llvm.mlir.zero : !llvm.array<8 x i64>
  llvm.return %z : !llvm.array<8 x i64>
}
llvm.mlir.global internal constant @address() : !llvm.ptr {
  %p = llvm.mlir.addressof @counter : !llvm.ptr
  llvm.return %p : !llvm.ptr
}
llvm.func @step(%i: i64) -> i64 {
  %one = llvm.mlir.constant(1 : i64) : i64
  %t = llvm.mlir.addressof @table : !llvm.ptr
  %p = llvm.getelementptr %t[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
  %v = llvm.load %p : !llvm.ptr -> i64
  %at = llvm.mlir.addressof @address : !llvm.ptr
  %c = llvm.load volatile %at : !llvm.ptr -> !llvm.ptr
  %old = llvm.load %c : !llvm.ptr -> i64
  %new = llvm.add %old, %v : i64
  llvm.store %new, %c : i64, !llvm.ptr
  %z = llvm.mlir.addressof @zeros : !llvm.ptr
  %q = llvm.getelementptr %z[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
  %n = llvm.load %q : !llvm.ptr -> i64
  %n1 = llvm.add %n, %one : i64
  llvm.store %n1, %q : i64, !llvm.ptr
  %sum = llvm.add %new, %n1 : i64
  llvm.return %sum : i64
}
"""
LIBM = """
llvm.func @cosf(f32) -> f32
llvm.func @cosine(%a: f32) -> f32 { %c = llvm.call @cosf(%a) : (f32) -> f32  llvm.return %c : f32 }
"""
UNKNOWN = """
llvm.func @no_such_function(i64) -> i64
llvm.func @f(%a: i64) -> i64 { %c = llvm.call @no_such_function(%a) : (i64) -> i64  llvm.return %c : i64 }
"""


def call(image, name, *args, result=ctypes.c_int64, kind=ctypes.c_int64):
    return ctypes.CFUNCTYPE(result, *[kind] * len(args))(image[name])(*args)


def test_symbols_resolve_across_objects_in_any_order(models):
    for names in (("a", "t"), ("t", "a")):
        codes = {"a": models.code(ADD), "t": models.code(TWICE)}
        image = load_objects({name: codes[name] for name in names})
        assert call(image, "twice", 21) == 42
        assert call(image, "where") == image["add"]
        assert image.is_code("add")


def test_constants_data_and_zeroed_data(models):
    image = load_objects({"d": models.code(DATA)})
    assert [call(image, "step", i) for i in (0, 1, 2, 2)] == [14, 19, 26, 34]
    again = load_objects({"d": models.code(DATA)})
    assert call(again, "step", 0) == 14  # each image has its own data


def test_calls_into_libm_reach_over_any_distance(models):
    image = load_objects({"m": models.code(LIBM)})
    assert call(image, "cosine", 0.0, result=ctypes.c_float, kind=ctypes.c_float) == 1.0


def test_no_page_is_writable_and_executable(models):
    image = load_objects({"d": models.code(DATA), "a": models.code(ADD)})
    rights = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, right, *_ = line.split()
        low, high = (int(part, 16) for part in span.split("-"))
        if low < image.base + image.size_bytes and high > image.base:
            rights[low] = right
    assert len(rights) == 3
    assert [right[:3] for _, right in sorted(rights.items())] == ["r-x", "r--", "rw-"]


def test_unresolved_and_duplicate_symbols_are_named(models):
    with pytest.raises(UnresolvedSymbol, match="no_such_function"):
        load_objects({"u": models.code(UNKNOWN)})
    with pytest.raises(BadObject, match="'add' is defined by another"):
        load_objects({"a": models.code(ADD), "b": models.code(ADD)})


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"not an object at all" * 10, bytes(64)])
def test_other_files_are_refused(data):
    with pytest.raises(BadObject):
        load_objects({"x": data})


def test_each_header_field_is_checked(models):
    good = models.code(DATA)
    for at, form, value in (
        (16, "<H", 3),  # a shared library
        (18, "<H", 183),  # another processor
        (40, "<Q", len(good) - 8),  # section table beyond the end
        (40, "<Q", 2**64 - 64),
        (58, "<H", 40),
        (60, "<H", 0xFFFF),
        (62, "<H", 0xFFFE),
    ):
        data = bytearray(good)
        struct.pack_into(form, data, at, value)
        with pytest.raises(BadObject):
            load_objects({"x": bytes(data)})


def _sections(data):
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    return [(table + 64 * i, list(struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i))) for i in range(count)]


def test_each_section_field_is_checked(models):
    """Extreme values in each field of each section either load or are refused; nothing else may happen."""
    good = models.code(TWICE)
    codes = {"a": models.code(ADD)}
    for at, _ in _sections(good):
        for field in (4, 8, 24, 32, 40, 44, 48, 56):
            for value in (1, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1, len(good)):
                data = bytearray(good)
                wide = field in (8, 24, 32, 48, 56)
                struct.pack_into("<Q" if wide else "<I", data, at + field, value & (2 ** (64 if wide else 32) - 1))
                _load_or_refuse({**codes, "t": bytes(data)})


def test_relocations_are_checked(models):
    good = models.code(DATA)
    seen = 0
    for _, section in _sections(good):
        if section[1] != 4:
            continue
        for at in range(section[4], section[4] + section[5], 24):
            for offset, value in ((0, 2**40), (0, 2**64 - 4), (8, 250), (12, 2**31), (16, 2**62)):
                data = bytearray(good)
                struct.pack_into("<I" if offset in (8, 12) else "<Q", data, at + offset, value)
                seen += _load_or_refuse({"x": bytes(data)})
    assert seen  # some were refused


def _load_or_refuse(objects) -> bool:
    try:
        load_objects(objects)
    except DlcError as error:
        assert error.code in ("DLC0505", "DLC0506", "DLC0562")
        return True
    return False


FUZZ = """
import random, sys
from dlc.errors import DlcError
from dlc.runtime.elf import load_objects
good = open(sys.argv[1], "rb").read()
rng = random.Random(int(sys.argv[2]))
refused = 0
for _ in range(int(sys.argv[3])):
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 255, 128, rng.randrange(256)))
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)):]
    try:
        load_objects({"x": bytes(data)})
    except DlcError:
        refused += 1
print(refused)
"""


def test_random_damage_is_an_error_never_a_crash(models, tmp_path):
    (tmp_path / "good.o").write_bytes(models.code(DATA))
    count = 3000 if EVERY else 400
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "good.o"), str(random.Random(1).randrange(99)), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > count // 10
