"""The probes measure what they say: rates within what a machine can have, and the copy copies."""

from __future__ import annotations

import ctypes

from dlc.codegen.target import AVX2, host_target
from dlc.memory_probe import BYTES, MemoryProbe
from dlc.speed_probe import WORDS, SpeedProbe


def test_memory_rates_are_plausible_and_the_copy_copies() -> None:
    probe = MemoryProbe(2)
    ctypes.memset(probe._address, 7, BYTES)
    read, copy = probe.look(sweeps=1)
    assert 0.5 < read < 2000 and 0.5 < copy < 2000
    assert probe.reads == [read] and probe.copies == [copy]
    ends = [ctypes.string_at(probe._address + BYTES + at, 64) for at in (0, BYTES // 2, BYTES - 64)]
    assert ends == [b"\7" * 64] * 3


def test_the_read_sums_everything() -> None:
    probe = MemoryProbe(1)
    ctypes.memset(probe._address, 0, BYTES)
    values = (ctypes.c_float * (BYTES // 4)).from_address(probe._address)
    values[0], values[BYTES // 8], values[BYTES // 4 - 1] = 1.0, 2.0, 4.0
    probe._sweep("read")
    lanes = (ctypes.c_float * 16).from_address(probe._address + 2 * BYTES)
    assert sum(lanes) >= 7.0  # narrower vectors leave the rest of the line as it was


def test_small_types_are_multiplied_faster() -> None:
    """Two bf16 products or four of bytes go through as fast as one of f32, where there is an instruction."""
    rates = {p: SpeedProbe(1, products=p) for p in ("f32", *WORDS)}
    for products, (extension, *_, number) in WORDS.items():
        probe = rates[products]
        assert probe.products == (products if host_target().has(extension) else "f32")
        assert probe.best > 0.6 * (number if probe.products == products else 1) * rates["f32"].best


def test_a_processor_without_the_instruction_is_measured_in_f32() -> None:
    assert SpeedProbe(1, AVX2, products="bf16").products == "f32"


def test_speed_of_two_threads_is_not_below_one() -> None:
    one, two = SpeedProbe(1), SpeedProbe(2)
    assert two.best > 0.8 * one.best > 0.8
