"""The low-precision types: every code of every type, against ml_dtypes and against the definition; rounding; packing."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from dlc.ir.codes import as_stored, codes_of, coded, decode, encode, magnitudes, next_after, values
from dlc.ir.dtype import (
    BIPOLAR,
    CODED,
    DTYPES,
    F4E2M1,
    FLOATS,
    I4,
    ML_DTYPES,
    SIGNED,
    T2,
    T5,
    UNSIGNED,
    VARIANTS,
    from_numpy,
)
from dlc.ir.errors import InvalidCode
from dlc.ir.packing import pack, packed_bytes, unpack

coded_types = pytest.mark.parametrize("dtype", CODED, ids=str)
float_types = pytest.mark.parametrize("dtype", [*FLOATS, *VARIANTS], ids=str)


def test_the_table_has_every_split_of_3_to_8_bits():
    splits = {(t.format.exponent, t.format.mantissa) for t in FLOATS}
    assert splits == {(e, b - 1 - e) for b in range(3, 9) for e in range(1, b)}
    assert [t.bits for t in UNSIGNED] == [t.bits for t in SIGNED] == list(range(1, 8))  # u8 and i8 are NumPy's own
    assert [t.bits for t in BIPOLAR] == list(range(1, 9))
    assert len({t.name for t in CODED}) == len(CODED) and all(DTYPES[t.name] is t for t in CODED)


@coded_types
def test_every_code_survives_the_round_trip(dtype):
    codes = np.arange(dtype.codes, dtype=np.uint8)
    numbers = values(dtype)
    for saturate in (True, False):
        again = encode(numbers, dtype, saturate=saturate)
        infinite = np.isinf(numbers) & saturate
        np.testing.assert_array_equal(values(dtype)[again][~infinite], numbers[~infinite])
        one_nan = ~np.isnan(numbers) & ~infinite
        np.testing.assert_array_equal(again[one_nan], codes[one_nan])
    stored = coded(codes, dtype)
    assert from_numpy(stored.dtype) is dtype and codes_of(stored).base is codes
    np.testing.assert_array_equal(decode(stored, dtype), numbers)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_mean_what_ml_dtypes_says(name):
    dtype, theirs = ML_DTYPES[name], np.dtype(getattr(ml_dtypes, name))
    codes = np.arange(dtype.codes, dtype=np.uint8)
    foreign = codes.view(theirs)
    np.testing.assert_array_equal(values(dtype).astype(np.float64), foreign.astype(np.float64))
    stored = as_stored(foreign)
    assert from_numpy(theirs) is dtype and stored.dtype == dtype.numpy
    np.testing.assert_array_equal(codes_of(stored), codes)


@pytest.mark.parametrize("name", [n for n, t in ML_DTYPES.items() if t.is_float and t.format.rule != "scale"])
def test_rounding_is_that_of_ml_dtypes(name):
    dtype, theirs = ML_DTYPES[name], np.dtype(getattr(ml_dtypes, name))
    x = _probes(dtype).astype(np.float32)
    x = x[~np.isnan(x)]
    mine = values(dtype)[encode(x, dtype, saturate=False)]
    want = x.astype(theirs).astype(np.float64)
    np.testing.assert_array_equal(mine, want)
    np.testing.assert_array_equal(np.signbit(mine[~np.isnan(mine)]), np.signbit(want[~np.isnan(want)]))


def _probes(dtype):
    m = magnitudes(dtype.format)
    middle = (m[:-1] + m[1:]) / 2
    near = np.concatenate(
        [m, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), m[-1] * np.array([1.01, 1.06, 1.2, 8])]
    )
    near = np.concatenate([near, [0.0, np.inf]])
    return np.concatenate([near, -near, [np.nan]])


@float_types
def test_encoding_takes_the_nearest_value_and_of_two_the_even_code(dtype):
    """By enumeration of all codes, for values at, between and beyond them."""
    numbers, greatest = values(dtype), float(magnitudes(dtype.format)[-1])
    for x in _probes(dtype):
        code = int(encode(x, dtype))
        if np.isnan(x):
            assert np.isnan(numbers[code]) if dtype.format.rule != "finite" else numbers[code] == 0
            continue
        if dtype.format.rule == "scale" and x < 0:
            assert np.isnan(numbers[code])
            continue
        target = np.clip(x, -greatest, greatest)
        finite = np.isfinite(numbers)
        distance = np.where(finite, np.abs(np.where(finite, numbers, 0) - target), np.inf)
        assert distance[code] == distance.min(), (x, numbers[code])
        nearest = [c for c in np.flatnonzero(distance == distance.min()) if np.signbit(numbers[c]) == np.signbit(x)]
        if len(nearest) == 2:  # half way
            assert code % 2 == 0


@pytest.mark.parametrize("dtype", [*UNSIGNED, *SIGNED, *BIPOLAR, T2, T5], ids=str)
def test_whole_numbers_are_clamped_and_rounded_to_the_nearest(dtype):
    numbers = values(dtype).astype(np.float64)
    for x in [*np.arange(dtype.lowest - 3, dtype.highest + 4, 0.25), -np.inf, np.inf]:
        code = int(encode(x, dtype))
        target = np.clip(x, dtype.lowest, dtype.highest)
        assert abs(numbers[code] - target) == np.abs(numbers - target).min()
    at_nan = float(numbers[int(encode(np.nan, dtype))])
    assert abs(at_nan) == np.abs(numbers).min()


@pytest.mark.parametrize("dtype", BIPOLAR, ids=str)
def test_numbers_beside_a_tie_are_on_their_side_of_it(dtype):
    """However near they are: an even number has a code of its own only where it is met exactly."""
    for tie in range(dtype.lowest + 1, dtype.highest, 2):
        below, above = (values(dtype)[int(encode(np.nextafter(tie, to), dtype))] for to in (-np.inf, np.inf))
        assert (below, above) == (tie - 1, tie + 1) and int(encode(tie, dtype)) % 2 == 0


def test_codes_of_well_known_numbers():
    assert values(F4E2M1).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert values(BIPOLAR[0]).tolist() == [-1, 1] and values(BIPOLAR[1]).tolist() == [-3, -1, 1, 3]
    assert values(T2).tolist() == values(T5).tolist() == [-1, 0, 1]
    assert values(I4)[[0, 7, 8, 15]].tolist() == [0, 7, -8, -1]
    assert magnitudes(DTYPES["f8e4m3"].format)[-1] == 448 and magnitudes(DTYPES["f8e5m2"].format)[-1] == 57344
    assert values(DTYPES["f3e1m1"]).tolist() == [0, 1, 2, 3, -0.0, -1, -2, -3]


@float_types
def test_the_next_number(dtype):
    numbers = np.unique(values(dtype)[~np.isnan(values(dtype))])
    stored = coded(encode(numbers, dtype, saturate=False), dtype)
    up = next_after(stored[:-1], stored[1:], dtype)
    down = next_after(stored[1:], stored[:-1], dtype)
    np.testing.assert_array_equal(up, numbers[1:])
    np.testing.assert_array_equal(down, numbers[:-1])


# --- packing ---------------------------------------------------------------------------------------------------------


@coded_types
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 8, 9, 31, 64, 257])
def test_packing_is_its_definition_and_is_undone(dtype, count):
    codes = np.random.default_rng(count).integers(0, dtype.codes, count).astype(np.uint8)
    stream = pack(codes, dtype)
    assert len(stream) == packed_bytes(count, dtype)
    np.testing.assert_array_equal(unpack(stream, dtype, count), codes)
    if dtype.per_byte is None:
        bits = np.unpackbits(stream, bitorder="little")
        want = [(int(c) >> j) & 1 for c in codes for j in range(dtype.bits)]
        assert bits[: len(want)].tolist() == want and not bits[len(want) :].any()
    else:
        groups = [codes[i : i + 5] for i in range(0, count, 5)]
        assert stream.tolist() == [sum(int(c) * 3**k for k, c in enumerate(g)) for g in groups]


def test_all_bytes_of_five_ternary_codes():
    for digits in itertools.product(range(3), repeat=5):
        codes = np.array(digits, np.uint8)
        assert unpack(pack(codes, T5), T5, 5).tolist() == list(digits)


def test_a_code_that_ternary_does_not_have_is_refused():
    with pytest.raises(InvalidCode, match="3 is no code of t2, which has 3"):
        pack(np.array([0, 3, 1], np.uint8), T2)


def test_a_packed_int4_stream_is_onnx_s():
    """Two per byte, the first in the low half: the order of ONNX's raw data."""
    assert pack(np.array([1, 2, 15], np.uint8), I4).tolist() == [0x21, 0x0F]
