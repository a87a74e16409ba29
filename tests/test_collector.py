"""The collector of cyclic garbage rests while programs are made, and is afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from dlc.collector import collector_put_off


def test_the_collector_rests_inside_and_is_afterwards_as_it_was() -> None:
    assert gc.isenabled()
    with collector_put_off():
        assert not gc.isenabled()
        with collector_put_off():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), collector_put_off():
        raise ValueError("inside")
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_put_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
