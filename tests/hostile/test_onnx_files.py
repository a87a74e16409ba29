"""Damaged ONNX files through `dlc.compile`: a coded error, or a program that computes what the file says.

Never a crash, a hang, an exception of another kind or an internal error. In `make test` 100 of the 500 mutations run,
spread over all kinds; the others with --all, and their results are kept in the ledger until the file or the compiler changes.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.errors import DlcError, Internal

onnx = pytest.importorskip("onnx")
from ledger import Ledger, digest_of, source_digest  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from tests.hostile.small_onnx import MODELS, damaged, inputs  # noqa: E402

SECONDS = 60
MUTATIONS = 500


class Hung(BaseException):
    """Not an Exception: nothing in between may catch it."""


@contextmanager
def watchdog(seconds: float = SECONDS) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(data: bytes, arrays: tuple[Any, ...]) -> str:
    """The error's code, 'same' as ONNX's reference, 'no reference' when that fails, or a description of the fault."""
    try:
        with watchdog():
            exe = dlc.compile(data, threads=1)
            got = exe(*arrays)
    except Internal as error:
        return f"internal: {str(error).splitlines()[0]}"
    except DlcError as error:
        assert error.code and str(error)
        return str(error.code)
    except Hung:
        return "hang"
    except Exception as error:
        return f"raw: {type(error).__name__}: {error}"
    got = got if isinstance(got, tuple) else (got,)
    try:
        with watchdog(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = onnx.load_model_from_string(data)
            names = [i.name for i in model.graph.input]
            want = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    except (Exception, Hung):
        return "no reference"
    return "same" if len(got) == len(want) and all(map(near, got, want)) else "different results"


def near(got: Any, want: Any) -> bool:
    g, w = np.asarray(got), np.asarray(want)
    if g.shape != w.shape:
        return False
    if w.dtype.kind != "f":
        return bool(np.array_equal(g, w))
    finite = np.isfinite(w)
    if not finite.all() or not w.size:
        return True  # damaged weights may be huge; where they overflow depends on the order of sums
    return bool(np.abs(g - w).max() <= 1e-3 * max(1.0, np.abs(w).max()))


FINE = ("DLC", "same", "no reference")


@pytest.mark.parametrize("part", range(10))
def test_mutations(part: int, everything: bool) -> None:
    """Part p of 10: mutations p, p + 10 ..., alternating between the two networks."""
    count = MUTATIONS if everything else 100
    ledger = Ledger("hostile_onnx") if everything else None
    wrong: list[str] = []
    seen: set[str] = set()
    for seed in range(part, count, 10):
        name = list(MODELS)[seed // 10 % 2]
        data = damaged(MODELS[name](), seed)
        key = None
        if ledger is not None:
            key = ledger.key(f"{name}-{seed}", digest=digest_of(data, source_digest()), packages=("onnx", "numpy"))
        result = ledger.get(key) if ledger is not None and key is not None else None
        if result is None:
            result = outcome(data, inputs(name))
            if ledger is not None and key is not None and result.startswith(FINE):
                ledger.put(key, result)
        seen.add(result[:6])
        if not result.startswith(FINE):
            wrong.append(f"mutation {seed} of {name}: {result}")
    assert not wrong, "\n".join(wrong)
    assert seen


@pytest.mark.parametrize("name", MODELS)
def test_the_undamaged_ones(name: str) -> None:
    assert outcome(MODELS[name](), inputs(name)) == "same"


def test_the_watchdog_barks() -> None:
    with pytest.raises(Hung), watchdog(0.05):
        while True:
            pass


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    """Also through a link; nothing of the file is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    with pytest.raises(DlcError) as caught:
        dlc.compile(path)
    assert caught.value.code == "DLC0244" and "'w'" in str(caught.value)
