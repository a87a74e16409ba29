"""The ledger keeps what it was told, through torn lines and parallel writers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ledger import Key, Ledger, digest_of


def test_keeps_results_for_the_next_run(tmp_path: Path) -> None:
    first = Ledger("x", tmp_path)
    key = first.key("check", digest="d", packages=("numpy",))
    assert first.get(key) is None
    first.put(key, {"status": "pass"})
    assert Ledger("x", tmp_path).get(key) == {"status": "pass"}
    assert Ledger("x", tmp_path).get(first.key("check", digest="other", packages=("numpy",))) is None
    assert f"numpy={np.__version__}" in key.versions


def test_survives_a_torn_line_and_later_lines_win(tmp_path: Path) -> None:
    ledger = Ledger("x", tmp_path)
    a, b = Key("a", "", "", ""), Key("b", "", "", "")
    ledger.put(a, 1)
    ledger.put(a, 2)
    with ledger.path.open("a") as file:
        file.write('{"check": "b", "dig')
    again = Ledger("x", tmp_path)
    assert again.get(a) == 2
    assert again.get(b) is None
    again.compact()
    assert [json.loads(line)["result"] for line in ledger.path.read_text().splitlines()] == [2]


def test_parallel_writers_lose_nothing(tmp_path: Path) -> None:
    def write(n: int) -> None:
        Ledger("x", tmp_path).put(Key(str(n), "", "", ""), "r" * 500)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100)))
    assert len(list(Ledger("x", tmp_path))) == 100


def test_digest_tells_parts_apart() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of(np.zeros((2, 3))) != digest_of(np.zeros((3, 2)))
    assert digest_of(np.zeros(2, np.float32)) == digest_of(np.zeros(2, np.float32))
