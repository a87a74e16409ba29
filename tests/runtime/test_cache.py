"""The kernel cache: hits, damage, bounds, concurrent processes, and disks that refuse."""

from __future__ import annotations

import multiprocessing
import os
import resource

import pytest

from dlc.runtime.cache import KernelCache, default_folder


def test_round_trip_and_isolation_of_keys(tmp_path):
    cache = KernelCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", b"one")
    cache.put("b", b"")
    assert cache.get("a") == b"one"
    assert cache.get("b") == b""
    assert (cache.hits, cache.misses) == (2, 1)
    assert KernelCache(tmp_path).get("a") == b"one"


def test_damage_is_a_miss(tmp_path):
    cache = KernelCache(tmp_path)
    cache.put("a", b"x" * 100)
    (path,) = tmp_path.glob("*/*.o")
    data = bytearray(path.read_bytes())
    for damaged in (data[:-1], data[:20], b"", bytes(data[:60]) + b"!" + bytes(data[61:])):
        path.write_bytes(damaged)
        assert cache.get("a") is None
        assert not path.exists()
        cache.put("a", b"x" * 100)
    other = cache._path("b")
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    assert cache.get("b") is None  # an entry under another key's name


def test_oldest_entries_go_first(tmp_path):
    cache = KernelCache(tmp_path, limit_bytes=10_000)
    for number in range(10):
        cache.put(str(number), bytes(1000))
        os.utime(cache._path(str(number)), (1000 + number, 1000 + number))
    assert cache.get("0") is not None  # touched now
    cache.put("large", bytes(3000))
    cache.trim()
    assert cache.size_bytes() <= 10_000
    assert cache.get("0") is not None
    assert cache.get("1") is None
    assert cache.get("9") is not None
    cache.put("too large", bytes(9000))
    assert cache.get("too large") is None
    cache.clear()
    assert cache.size_bytes() == 0


def _hammer(folder, seed):
    cache = KernelCache(folder, limit_bytes=20_000)
    wrong = 0
    for step in range(150):
        key = str((seed * 7 + step) % 13)
        data = cache.get(key)
        wrong += data is not None and data != key.encode() * 500
        cache.put(key, key.encode() * 500)
    raise SystemExit(1 if wrong else 0)


def test_concurrent_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hammer, args=(tmp_path, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert not list(tmp_path.glob("*/.*.part"))


def test_a_folder_that_cannot_be_is_no_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    cache = KernelCache(blocker / "cache")
    cache.put("a", b"data")
    assert cache.get("a") is None
    cache.trim()
    assert cache.size_bytes() == 0


def _full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    cache = KernelCache(folder)
    cache.put("big", bytes(5000))
    raise SystemExit(0 if cache.get("big") is None else 1)


def test_a_full_disk_is_no_error(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_full_disk, args=(tmp_path,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    assert not [path for path in tmp_path.glob("**/*") if path.is_file()]


def test_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DLC_CACHE_DIR", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("DLC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "dlc"


@pytest.mark.parametrize("key", ["", "a/../../b", "\udcff", "x" * 10_000])
def test_any_text_is_a_key(tmp_path, key):
    cache = KernelCache(tmp_path)
    cache.put(key, b"1")
    assert cache.get(key) == b"1"
