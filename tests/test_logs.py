"""DLC_LOGS: its grammar, and that it shows something."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from dlc.logs import NAMES, UnknownLog, levels


def test_grammar() -> None:
    assert levels("") == {}
    assert levels("+passes, -compile") == {"passes": logging.DEBUG, "compile": logging.ERROR}
    assert levels("all") == dict.fromkeys(NAMES, logging.INFO)
    assert levels("traceback") == {}
    with pytest.raises(UnknownLog, match="there is no log 'pases'"):
        levels("+pases")


def test_passes_log_their_time() -> None:
    code = (
        "from dlc.passes.pipeline import Pass, Pipeline\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Idle(Pass):\n"
        "    name = 'idle'\n"
        "    def apply(self, program): return program\n"
        "import dlc\n"
        "Pipeline((Idle(),)).run('p', verify=False)\n"
    )
    environment = {**os.environ, "DLC_LOGS": "passes"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("[dlc.passes] idle: ") and "no change" in done.stderr
