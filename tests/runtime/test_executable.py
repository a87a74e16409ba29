"""Calling an executable: results, structure, refusals, foreign tensors, out=, aliases, dynamic results, threads."""

from __future__ import annotations

import gc
import json
import pickle
import threading

import numpy as np
import pytest

from dlc.runtime import errors
from dlc.runtime.executable import Executable, load
from dlc.runtime.values import array_address


@pytest.fixture(scope="module")
def exe(models):
    return Executable.from_parts(*models.bias(), threads=2)


def expected(models, x):
    return 2 * x + models.weights[: x.shape[1]]


def ramp(b, s):
    return np.arange(b * s, dtype=np.float32).reshape(b, s) / 16


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (3, 64), (257, 33), (4096, 64)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_serves_every_shape(models, shape, threads):
    exe = Executable.from_parts(*models.bias(), threads=threads)
    x = ramp(*shape)
    y = exe(x)
    assert y.shape == shape
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected(models, x))
    assert exe.threads == threads


def test_results_are_fresh(exe):
    x = ramp(3, 4)
    first, second = exe(x), exe(x)
    first[:] = 0
    assert not np.shares_memory(first, second)
    assert second.any()


def test_strided_readonly_and_misaligned_inputs(models, exe):
    base = ramp(8, 12)
    readonly = base.copy()
    readonly.flags.writeable = False
    raw = np.zeros(8 * 12 * 4 + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(8, 12)
    misaligned[:] = base
    for x in (base[::2, 1:9], base.T, base[::-1], np.asfortranarray(base), readonly, misaligned, base[:, :1]):
        np.testing.assert_array_equal(exe(x), expected(models, x))


def test_torch_in_torch_out(models, exe):
    torch = pytest.importorskip("torch")
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for value in (x, x.T, x[:, ::2], torch.nn.Parameter(x), x.clone().requires_grad_()):
        y = exe(value)
        assert isinstance(y, torch.Tensor)
        assert not y.requires_grad
        np.testing.assert_array_equal(y.numpy(), expected(models, value.detach().numpy()))
    with pytest.raises(errors.WrongDtype, match="element type f64, expected f32"):
        exe(x.double())
    with pytest.raises(errors.UnusableInput, match="meta"):
        exe(x.to("meta"))
    with pytest.raises(errors.UnusableInput, match="sparse"):
        exe(x.to_sparse())


class OnlyDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack(models, exe):
    x = ramp(3, 4)
    y = exe(OnlyDlpack(x))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, expected(models, x))


def test_refusals_name_the_input_and_what_was_expected(exe):
    x = ramp(3, 4)
    cases = [
        (lambda: exe(), errors.WrongArgumentCount, "positional argument x is missing"),
        (lambda: exe(x, x), errors.WrongArgumentCount, "2 positional arguments"),
        (lambda: exe(x, z=x), errors.WrongArgumentCount, "unknown keyword argument 'z'"),
        (lambda: exe(None), errors.UnusableInput, "a NoneType is no tensor"),
        (lambda: exe(x.astype(np.float64)), errors.WrongDtype, "'x' has element type f64, expected f32"),
        (lambda: exe(x.astype(">f4")), errors.WrongDtype, "expected f32"),
        (lambda: exe(x[0]), errors.WrongRank, r"'x' has shape \(4,\), expected \(b, s\): 2 dimensions, not 1"),
        (lambda: exe(ramp(3, 65)), errors.SymbolOutOfRange, "'s' would be 65, but .* from 1 to 64"),
        (lambda: exe(ramp(3, 0)), errors.SymbolOutOfRange, "'s' would be 0"),
        (lambda: exe([[1.0]]), errors.UnusableInput, "'x' cannot be used: a list is no tensor"),
        (lambda: exe("text"), errors.UnusableInput, "a str is no tensor"),
        (lambda: exe(1.0), errors.UnusableInput, "a float is no tensor"),
        (lambda: exe(np.ma.masked_array(x)), errors.UnusableInput, "masked"),
        (lambda: exe(x.astype(object)), errors.WrongDtype, "object"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            call()
        assert error.value.code.startswith("DLC05")
    np.testing.assert_array_equal(exe(x=x), exe(x))  # a positional argument by name


def test_plain_places_take_the_short_way(models, exe, monkeypatch):
    """A fit array or tensor is written at once; whatever is out of the ordinary is looked at closely."""
    torch = pytest.importorskip("torch")
    close: list[object] = []
    special = Executable._run_special

    def look(self, *args):
        close.append(args[-2])
        return special(self, *args)

    monkeypatch.setattr(Executable, "_run_special", look)
    x = ramp(3, 4)
    for place in (np.zeros((3, 4), np.float32), torch.zeros(3, 4)):
        assert exe(x, out=place) is place
        np.testing.assert_array_equal(np.asarray(place), expected(models, x))
    assert not close
    both = np.zeros(24, np.float32)
    both[:12] = x.ravel()
    odd = [
        np.zeros((3, 8), np.float32)[:, ::2],
        np.zeros((4, 3), np.float32),
        np.zeros((3, 4), np.float64),
        np.zeros(49, np.int8)[1:].view(np.float32).reshape(3, 4),
        torch.zeros(3, 4, requires_grad=True),
        torch.zeros(4, 3).T,
    ]
    for place in odd:
        with pytest.raises(errors.BadOut):
            exe(x, out=place)
    given, place = both[:12].reshape(3, 4), both[4:16].reshape(3, 4)
    exe(given, out=place)  # overlaps the input
    np.testing.assert_array_equal(place, expected(models, x))
    assert len(close) == len(odd) + 1


def test_large_results_lie_in_memory_of_earlier_ones(models, exe, monkeypatch):
    """The memory comes back when the last array on it is gone, and not before."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("dlc.runtime.executable.LENT_OUTPUT_BYTES", 40)
    x = ramp(3, 4)
    for given in (x, torch.from_numpy(x)):
        first = exe(given)
        part = first[1:]
        where = array_address(np.asarray(first))
        del first
        second = exe(given)  # the view keeps the first one's memory
        assert array_address(np.asarray(second)) != where
        np.testing.assert_array_equal(np.asarray(part), expected(models, x)[1:])
        del part
        third = exe(given)
        assert array_address(np.asarray(third)) == where
        np.testing.assert_array_equal(np.asarray(third), expected(models, x))
        np.testing.assert_array_equal(np.asarray(second), expected(models, x))
        del second, third


def test_out(models, exe):
    torch = pytest.importorskip("torch")
    x = ramp(3, 4)
    y = np.zeros((3, 4), np.float32)
    assert exe(x, out=y) is y
    np.testing.assert_array_equal(y, expected(models, x))
    t = torch.zeros(3, 4)
    assert exe(x, out=t) is t
    np.testing.assert_array_equal(t.numpy(), expected(models, x))
    want = expected(models, x)
    same = x.copy()
    assert exe(same, out=same) is same  # overlaps the input
    np.testing.assert_array_equal(same, want)
    readonly = np.zeros((3, 4), np.float32)
    readonly.flags.writeable = False
    for bad in (np.zeros((3, 5), np.float32), np.zeros((3, 4)), np.zeros((4, 3), np.float32).T, readonly, [y], 1.0):
        with pytest.raises(errors.BadOut):
            exe(x, out=bad)


def test_dynamic_results(models):
    exe = Executable.from_parts(*models.nonzero())
    x = np.array([3, 0, 4, 0, 0, 5], np.int32)
    y = exe(x)
    np.testing.assert_array_equal(y, [3, 4, 5])
    y[0] = 9  # the memory is the caller's
    assert exe(np.zeros(4, np.int32)).shape == (0,)
    assert exe(np.zeros(0, np.int32)).shape == (0,)
    view = exe(x)[1:]
    gc.collect()
    np.testing.assert_array_equal(view, [4, 5])
    place = np.zeros(3, np.int32)
    assert exe(x, out=place) is place
    np.testing.assert_array_equal(place, [3, 4, 5])
    with pytest.raises(errors.BadOut):
        exe(x, out=np.zeros(4, np.int32))


def test_dynamic_results_for_torch(models):
    torch = pytest.importorskip("torch")
    exe = Executable.from_parts(*models.nonzero())
    y = exe(torch.tensor([3, 0, 4], dtype=torch.int32))
    assert y.dtype == torch.int32
    assert y.tolist() == [3, 4]


def test_dynamic_results_do_not_leak(models):
    exe = Executable.from_parts(*models.nonzero())
    x = np.ones(1 << 18, np.int32)
    bad = x.copy()
    bad[-1] = -1

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    for _ in range(5):
        exe(x)
    before = resident()
    for _ in range(100):
        exe(x)
        with pytest.raises(errors.RuntimeCheckFailed):
            exe(bad)
    assert resident() - before < 20 << 20  # 200 MB were allocated


def test_a_failed_check_is_a_coded_error(models):
    exe = Executable.from_parts(*models.nonzero())
    with pytest.raises(errors.RuntimeCheckFailed) as error:
        exe(np.array([1, -1], np.int32))
    assert str(error.value).startswith("model.py:7: error[DLC0542]: an element is negative")
    assert error.value.to_json()["code"] == "DLC0542"
    np.testing.assert_array_equal(exe(np.array([1], np.int32)), [1])  # and leaves nothing behind


def test_donated_inputs_are_updated_in_place(models):
    torch = pytest.importorskip("torch")
    exe = Executable.from_parts(*models.increment(donate=True))
    x = np.arange(5)
    y = exe(x)
    np.testing.assert_array_equal(x, np.arange(5) + 1)
    assert np.shares_memory(x, y)
    t = torch.arange(5)
    assert exe(t).data_ptr() == t.data_ptr()
    assert t.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(errors.UnusableInput, match="contiguous"):
        exe(np.arange(10)[::2])
    x.flags.writeable = False
    with pytest.raises(errors.UnusableInput, match="writable"):
        exe(x)


def test_aliases_without_donation_are_copies(models):
    exe = Executable.from_parts(*models.increment(donate=False))
    x = np.arange(5)
    np.testing.assert_array_equal(exe(x), x + 1)
    np.testing.assert_array_equal(x, np.arange(5))
    place = np.zeros(5, np.int64)
    assert exe(x, out=place) is place
    np.testing.assert_array_equal(place, x + 1)


def test_outputs_that_are_constants_or_other_outputs(models):
    manifest, objects, constants = models.bias()
    manifest["outputs"] += [
        {"name": "w", "dtype": "f32", "shape": ["8", 2], "alias": ["constant", 64]},
        {"name": "again", "dtype": "f32", "shape": ["s", "b"], "alias": ["output", 0]},
        {"name": "same", "dtype": "i32", "shape": ["b * s"], "alias": ["input", 0]},
    ]
    manifest["frame"] = {"inputs": 16, "outputs": 21, "symbols": 18, "buffers": 20, "dynamic": 17, "size": 25}
    objects = {**objects, "main": models.code(models.entry.replace("%f[17]", "%f[21]"))}
    x = ramp(3, 4)
    for exe in (Executable.from_parts(manifest, objects, constants),) * 2:
        y, w, again, same = exe(x)
        np.testing.assert_array_equal(y, expected(models, x))
        np.testing.assert_array_equal(w.ravel(), models.weights[16:32])
        np.testing.assert_array_equal(again.ravel(), y.ravel())
        np.testing.assert_array_equal(same.view(np.float32), x.ravel())
        for array in (y, w, again, same):
            assert array.flags.writeable
            array[...] = 0  # fresh: changes nothing else
        assert x.any()
        out = tuple(np.ones_like(a) for a in (y, w, again, same))
        assert exe(x, out=out)[2] is out[2]
        np.testing.assert_array_equal(out[2].ravel(), expected(models, x).ravel())
        with pytest.raises(errors.BadOut, match="overlaps another output"):
            exe(x, out=(out[0], out[1], out[0].reshape(4, 3), out[3]))


def test_a_symbol_may_be_the_value_of_an_input(models):
    manifest, objects, constants = models.increment(donate=False)
    manifest["inputs"].append({"name": "count", "dtype": "i16", "shape": []})
    manifest["symbols"][0]["inputs"] = [[1, -1]]
    manifest["frame"] = {"inputs": 19, "outputs": 17, "symbols": 18, "buffers": 21, "dynamic": 21, "size": 21}
    exe = Executable.from_parts(manifest, objects, constants)
    for n in (3, 5):
        np.testing.assert_array_equal(exe(np.arange(n), n), np.arange(n) + 1)
        np.testing.assert_array_equal(exe(np.arange(n), np.array(n, np.int16)), np.arange(n) + 1)
    with pytest.raises(errors.SymbolMismatch, match="dimension 0 is 3, but n is 4"):
        exe(np.arange(3), 4)
    with pytest.raises(errors.SymbolOutOfRange):
        exe(np.arange(3), -1)
    with pytest.raises((errors.WrongRank, errors.WrongArgumentCount)):
        exe(np.arange(3), np.array([3], np.int16))


def test_rank_zero_inputs_take_numbers(models):
    exe = Executable.from_parts(*models.spin(), threads=1)
    assert exe(0) == 0
    assert exe(np.int64(0)).shape == ()
    for value in (1.0, True, 1 << 70):
        with pytest.raises((errors.WrongDtype, errors.UnusableInput)):
            exe(value)


def test_nesting_of_arguments_and_results(models):
    manifest, objects, constants = models.bias()
    leaf = {"t": "leaf", "i": 0}
    manifest["in_tree"] = {
        "t": "tuple",
        "c": [
            {"t": "tuple", "c": [{"t": "list", "c": [leaf, {"t": "const", "v": 3}]}, {"t": "none"}]},
            {"t": "dict", "k": ["flag"], "c": [{"t": "const", "v": True}]},
        ],
    }
    pair = {"t": "namedtuple", "n": "Result", "k": ["y", "hidden"], "c": [leaf, {"t": "none"}]}
    manifest["out_tree"] = {"t": "dict", "k": ["a", 1], "c": [{"t": "tuple", "c": [leaf]}, pair]}
    manifest["arg_names"] = ["pair", "mask"]
    exe = Executable.from_parts(manifest, objects, constants)
    x = ramp(2, 3)
    for result in (exe([x, 3], None, flag=True), exe([x, 3]), exe(pair=(x, 3), mask=None)):
        assert list(result) == ["a", 1]
        np.testing.assert_array_equal(result["a"][0], expected(models, x))
        assert result[1]._fields == ("y", "hidden")
        assert result[1].hidden is None
    for args, kwargs in (
        (([x, 4], None), {}),
        (([x], None), {}),
        ((x, None), {}),
        (([x, 3], 5), {}),
        (([x, 3], None), {"flag": False}),
        (([x, 3], None), {"flag": 1}),
        (([x, 3],), {"pair": [x, 3]}),
    ):
        with pytest.raises(errors.WrongArgumentCount):
            exe(*args, **kwargs)


def test_symbols_from_affine_dimensions_and_their_checks(models):
    manifest, objects, constants = models.bias()
    manifest["inputs"] = [
        {"name": "x", "dtype": "f32", "shape": ["b", "s"]},
        {"name": "z", "dtype": "i8", "shape": ["2 * h + 1", "s + h", "7"]},
    ]
    manifest["symbols"].append({"name": "h", "lo": 0, "hi": 100, "divisor": 2})
    manifest["frame"] = {"inputs": 21, "outputs": 17, "symbols": 18, "buffers": 23, "dynamic": 24, "size": 24}
    manifest.pop("arg_names")
    exe = Executable.from_parts(manifest, objects, constants)
    plan = exe._planner.plan(((3, 4), (9, 8, 7)), {})
    assert plan.symbols == (3, 4, 4)
    for shape, kind, message in (
        ((8, 8, 7), errors.WrongShape, r"dimension 0 is 8, which is 2 \* h \+ 1 for no h"),
        ((9, 9, 7), errors.SymbolMismatch, "dimension 1 is 9, but s is 4 by dimension 1 of input 'x' and h is 4"),
        ((9, 8, 6), errors.WrongShape, "dimension 2 is 6, compiled for 7"),
        ((7, 7, 7), errors.SymbolOutOfRange, "'h' would be 3, but .* multiples of 2"),
        ((9, 8), errors.WrongRank, "3 dimensions, not 2"),
    ):
        with pytest.raises(kind, match=message):
            exe(ramp(3, 4), np.zeros(shape, np.int8))


def test_calls_from_many_threads(models, exe):
    failed = []

    def work(seed):
        for step in range(150):
            x = ramp(1 + (seed * 31 + step * 7) % 90, 1 + (seed + step) % 64) + seed
            if not np.array_equal(exe(x), expected(models, x)):
                failed.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failed


def test_many_shapes_keep_memory_bounded(models):
    exe = Executable.from_parts(*models.bias(), threads=1)
    for b in range(600):
        exe(ramp(b, 8))
    assert len(exe._plans) <= 256
    assert exe._slabs.idle_bytes < 1 << 20


def test_bfloat16(models):
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    manifest, objects, constants = models.increment(donate=False)
    # four bfloat16 are one 64-bit word to this code: only carriage of the bits is tested
    manifest["inputs"][0] |= {"dtype": "bf16", "shape": ["4 * n"]}
    manifest["outputs"][0] |= {"dtype": "bf16", "shape": ["4 * n"]}
    exe = Executable.from_parts(manifest, objects, constants)
    bits = np.array([0x3F80, 0, 0, 0], np.uint16)
    for x in (bits, bits.view(np.int16), bits.view(ml_dtypes.bfloat16)):
        y = exe(x)
        assert y.dtype == ml_dtypes.bfloat16
        assert y.view(np.uint16).tolist() == [0x3F81, 0, 0, 0]
    y = exe(torch.ones(4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y[0] > 1
    with pytest.raises(errors.WrongDtype):
        exe(np.ones(4, np.float16))


def test_profile(exe, tmp_path):
    profile = exe.profile(ramp(512, 64), repeat=3)
    assert [row.name for row in profile.rows] == ["double", "bias"]
    assert abs(sum(row.share for row in profile.rows) - 1) < 1e-9
    assert all(row.time_ns > 0 and row.flops == 512 * 64 for row in profile.rows)
    assert profile.kernels_ns <= profile.total_ns * 1.5
    assert "double  m.py:1" in str(profile)
    json.dumps(profile.to_json())
    profile.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} == {"call", "double", "bias"}


def test_pickle_and_repr(models, exe):
    copy = pickle.loads(pickle.dumps(exe))
    x = ramp(3, 4)
    np.testing.assert_array_equal(copy(x), exe(x))
    assert repr(exe).startswith("<dlc.Executable (x: f32[b, s]) -> (y: f32[b, s]); 2 kernel calls")


def test_save_and_load(models, exe, tmp_path):
    exe.save(tmp_path / "m.dlc")
    again = load(tmp_path / "m.dlc", threads=1)
    x = ramp(7, 9)
    np.testing.assert_array_equal(again(x), exe(x))
    assert again.threads == 1
    again.save(tmp_path / "copy.dlc")
    assert (tmp_path / "m.dlc").read_bytes() == (tmp_path / "copy.dlc").read_bytes()


def test_thread_counts_are_checked(models, monkeypatch):
    for bad in (0, -1, 1025, 1.5, "x", True):
        with pytest.raises(errors.BadThreadCount):
            Executable.from_parts(*models.bias(), threads=bad)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert Executable.from_parts(*models.bias()).threads == 3
    monkeypatch.setenv("DLC_NUM_THREADS", "2")
    assert Executable.from_parts(*models.bias()).threads == 2
    monkeypatch.setenv("DLC_NUM_THREADS", "many")
    with pytest.raises(errors.BadThreadCount, match="DLC_NUM_THREADS"):
        Executable.from_parts(*models.bias())


def test_a_cpu_that_lacks_features_is_refused(models):
    manifest, objects, constants = models.bias()
    manifest["target"] = {"isa": "x86-64", "features": ["avx", "+avx1024f", "quantum-leap"]}
    with pytest.raises(errors.MissingCpuFeatures, match=r"it lacks \+avx1024f, quantum-leap"):
        Executable.from_parts(manifest, objects, constants)


def test_memory_that_does_not_exist_is_refused(models):
    manifest, objects, constants = models.bias()
    manifest["buffers"][0]["bytes"] = "1000000000000 * b"
    exe = Executable.from_parts(manifest, objects, constants)
    with pytest.raises(errors.NotEnoughMemory):
        exe(ramp(60, 4))
