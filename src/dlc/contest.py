"""Timing contenders against each other in one run: in turns, each in its own process, the machine probed around each turn.

Three things spoil such timings on a shared machine. Idle threads of a library spin for a while and steal the next one's
cores: so there is a pause before each turn, and only one process has work. The machine's speed drifts: so the
contenders take turns, in rounds. And for tenths of a second the cores may run at half their speed: so a short kernel
tells the speed before and after each turn, and turns beside a slow moment are repeated, a bounded number of times.

    with Contest(inputs, threads=2, folder=work) as contest:
        contest.enter("dlc", model="model.dlc")
        contest.enter("onnxruntime", model="model.onnx")
        contest.check("onnxruntime")
        results = contest.run(rounds=5)
"""

from __future__ import annotations

import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.contender import save_ring
from dlc.paired import Turn, add_ratios

if TYPE_CHECKING:
    from dlc.speed_probe import SpeedProbe

PAUSE_S = 0.06
TRIES = 4
WAIT_S = 0.5
"""Patience with a slow machine before a turn; slow moments last some tenths of a second."""

TOLERANCE = 1e-3
"""A contender whose results depart further from the reference's, relative to the largest value, is not timed."""

HOPELESS = 5.0
"""A contender that takes so many times as long as the fastest has only one turn."""

SLOW_CALL_S = 20.0
"""A contender whose first call takes longer has no turn at all."""

PREPARE_S = 300.0
"""Patience with a contender's own compilation."""


class Gone(Exception):
    """A contender's process ended, or did not answer in time."""


class Process:
    """A contender's process; see `dlc.contender` for what it understands."""

    def __init__(self, threads: int, log: Path) -> None:
        count = str(threads)
        environment = {
            **os.environ,
            "KMP_BLOCKTIME": "20",  # milliseconds for which idle OpenMP threads spin; 0 would cost 15 % of short calls
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "DLC_NUM_THREADS": count,
        }
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dlc.contender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, patience_s: float, **command: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            Gone: there will be none; the process is ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise Gone(f"its process ended with status {self._process.wait()}") from None
        ready, _, _ = select.select([stdout], [], [], patience_s)
        if not ready:
            self.close(at_once=True)
            raise Gone(f"it took more than {patience_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise Gone(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self, at_once: bool = False) -> None:
        if at_once:
            self._process.kill()
        with suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


class Crew:
    """Contenders' processes that several contests share, one for each name: each holds the models of all."""

    def __init__(self, threads: int, folder: Path) -> None:
        self.threads, self._folder = threads, folder
        self._processes: dict[str, Process] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def of(self, name: str) -> Process:
        """The contender's process; a new one if it has none, or if that has ended."""
        found = self._processes.get(name)
        if found is None or found.ended:
            found = self._processes[name] = Process(self.threads, self._folder / f"{name}.log")
        return found


@dataclass
class Entrant:
    """A contender and what is known of it.

    Attributes:
        name: of the row.
        plan: what its process was told.
        process: None when it is out of the contest; then `absent` says why.
        error: of its results against the reference's, relative to the largest value; None when it is the reference.
        blocks: seconds of each call, a list per turn; `slow`, those beside a slow moment of the machine.
        cpu: processor seconds of each call, of all threads.
        turns: what each round came to.
        peak_bytes: the most that was resident while it was timed.
        resting: it is so slow that it is timed no more.
        shared: whether its process is of a crew, and goes on without it.
        facts: prepare seconds, versions, note, memory.
    """

    name: str
    plan: dict[str, Any]
    process: Process | None = None
    absent: str = ""
    error: float | None = None
    blocks: list[list[float]] = field(default_factory=list)
    slow: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    turns: dict[int, Turn] = field(default_factory=dict)
    peak_bytes: int = 0
    resting: bool = False
    shared: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def out(self, why: str) -> None:
        self.absent = why
        if self.process is not None and not self.shared:
            self.process.close(at_once=True)
        self.process = None

    def row(self) -> dict[str, Any]:
        """What a result file has of it; seconds."""
        row: dict[str, Any] = {"name": self.name, **self.facts}
        if self.absent:
            return {**row, "absent": self.absent}
        if self.peak_bytes:
            row["memory"] = {**row.get("memory", {}), "run": self.peak_bytes}
        kept = self.blocks or self.slow
        calls = sorted(t for block in kept for t in block)
        medians = sorted(statistics.median(block) for block in kept)
        row |= {"error": self.error, "calls": len(calls), "blocks": len(self.blocks), "slow_blocks": len(self.slow)}
        if calls:
            row |= {
                "median": statistics.median(calls),
                "cpu_median": statistics.median(self.cpu),
                "least": calls[0],
                "p90": calls[min(len(calls) - 1, int(len(calls) * 0.9))],
                "block_medians": [medians[0], medians[-1]],
                "rounds": [[n, turn.median, turn.fine] for n, turn in self.turns.items()],
            }
        return row

    def keep(self, number: int, answer: Mapping[str, Any], fine: bool) -> None:
        """Note a turn of a round; of several the last one counts for the round."""
        (self.blocks if fine else self.slow).append(answer["times"])
        self.cpu += answer["cpu"]
        self.turns[number] = Turn(statistics.median(answer["times"]), fine)
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])


class Contest:
    """Contenders for one model, one ring of inputs and one number of threads.

    Args:
        ring: sets of inputs, each in the model's order.
        threads: of every contender.
        folder: for files that the processes exchange, and their logs.
        names: of the model's inputs.
        manifest: of the compiled model; says how its inputs nest.
        torch: whether the caller has tensors of torch and wants such back, or NumPy arrays.
        cache: where compilers keep what they made of the model, for the next contest; `folder` unless given.
        crew: processes that are shared with other contests; this one's models have the slot named here.
        say: told what is being done.
    """

    def __init__(
        self,
        ring: Sequence[Sequence[np.ndarray]],
        *,
        threads: int,
        folder: Path,
        names: Sequence[str] = (),
        manifest: Mapping[str, Any] | None = None,
        torch: bool = False,
        cache: Path | None = None,
        crew: Crew | None = None,
        slot: str = "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.threads, self.folder, self.say = threads, folder, say
        self._crew, self._slot = crew, slot
        self.entrants: dict[str, Entrant] = {}
        self.probe: SpeedProbe | None = None
        self._inputs = folder / "ring.npz"
        save_ring(self._inputs, ring)
        tree = {"in_tree": manifest.get("in_tree")} if manifest else {}
        self._common = {
            "inputs": str(self._inputs),
            "threads": threads,
            "names": list(names),
            "manifest": tree,
            "torch": torch,
            "cache": str(cache or folder),
        }

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        for entrant in self.entrants.values():
            if entrant.shared:
                self._ask(entrant, PREPARE_S, do="forget")
            elif entrant.process is not None:
                entrant.process.close()

    def enter(self, name: str, kind: str | None = None, *, model: str = "", absent: str = "", **more: Any) -> None:
        """Add a contender, or a name that is missing because `absent`; its plan is as `dlc.contender` has it."""
        plan = {"kind": kind or name, "model": model, **self._common, **more}
        self.entrants[name] = Entrant(name, plan, absent=absent)

    def prepare(self, patience_s: float = PREPARE_S, at_once: int = 2) -> None:
        """Start the contenders' processes and let them load or compile the model."""

        def one(entrant: Entrant) -> None:
            if entrant.absent:
                return
            self.say(f"preparing {entrant.name}")
            entrant.shared = self._crew is not None
            if self._crew is not None:
                entrant.process = self._crew.of(entrant.name)
            else:
                entrant.process = Process(self.threads, self.folder / f"{entrant.name}.log")
            answer = self._ask(entrant, patience_s, do="prepare", **entrant.plan)
            if answer is not None and answer["first_call_s"] > SLOW_CALL_S:
                entrant.out(f"one call takes {answer['first_call_s']:.0f} s")
            elif answer is not None:
                entrant.facts = {
                    "prepare_s": answer["seconds"],
                    **{key: answer[key] for key in ("versions", "note", "memory")},
                }

        with ThreadPoolExecutor(at_once) as team:
            for _ in team.map(one, self.entrants.values()):
                pass

    def check(
        self, order: Sequence[str] = ("eager", "onnxruntime", "openvino"), sets: int = 3, tolerance: float = TOLERANCE
    ) -> str:
        """Compare everybody's results for the first sets of inputs with those of the first of `order` that is here.

        Returns:
            Who it was, or ''.
        """
        results = {}
        for name, entrant in self.entrants.items():
            path = self.folder / f"{name}.npz"
            if self._ask(entrant, PREPARE_S, do="check", path=str(path), sets=sets) is not None:
                results[name] = path
        judge = next((name for name in order if name in results), "")
        if judge:
            with np.load(results[judge]) as want:
                expected = {key: want[key] for key in want.files}
            for name, path in results.items():
                with np.load(path) as got:
                    error = largest_error({key: got[key] for key in got.files}, expected)
                self.entrants[name].error = None if name == judge else error
                if not error < tolerance:
                    self.entrants[name].out(f"its results are wrong: error {error:.1e} against {judge}")
        for path in results.values():
            path.unlink()
        return judge

    def run(
        self,
        rounds: int = 5,
        *,
        block_s: float = 0.4,
        least: int = 3,
        most: int = 500,
        warm_s: float = 0.02,
        tries: int = TRIES,
    ) -> list[dict[str, Any]]:
        """Take turns, of which one beside a slow moment has some tries; a row per contender, in the order of entry."""
        if self.probe is None:
            self.probe = speed_probe(self.threads)
        spare = 2 * rounds * len(self.entrants)  # turns that may be repeated in all, so that a busy machine ends, too
        for number in range(rounds):
            self.say(f"round {number + 1} of {rounds}")
            for entrant in self._in_turn(number):
                for _ in range(tries):
                    fine = self._turn(entrant, number, seconds=block_s, least=least, most=most, warm=warm_s)
                    if fine or spare <= 0:
                        break
                    spare -= 1
            self._rest_the_hopeless()
        rows = [entrant.row() for entrant in self.entrants.values()]
        add_ratios(rows, {e.name: e.turns for e in self.entrants.values()})
        return rows

    def _turn(self, entrant: Entrant, number: int, **block: float) -> bool:
        """One block of calls; whether it need not be repeated."""
        time.sleep(PAUSE_S)
        fine = self._wait_for_speed()
        answer = self._ask(entrant, PREPARE_S, do="block", **block)
        if answer is None:
            return True
        time.sleep(0.005)
        fine = fine and (self.probe is None or self.probe.undisturbed())
        entrant.keep(number, answer, fine)
        return fine

    def _rest_the_hopeless(self) -> None:
        """Who takes many times as long as the fastest is timed no more: its row would change nothing."""
        here = [e for e in self.entrants.values() if e.turns and e.process is not None]
        least = min((min(t.median for t in e.turns.values()) for e in here), default=0.0)
        for entrant in here:
            if min(t.median for t in entrant.turns.values()) > HOPELESS * least:
                entrant.resting = True

    def profile(self, name: str = "dlc", repeat: int = 10) -> dict[str, Any] | None:
        """The profile of a dlc contender, of a few attempts the one that took least."""
        best: dict[str, Any] | None = None
        for _ in range(TRIES):
            time.sleep(PAUSE_S)
            answer = self._ask(self.entrants[name], PREPARE_S, do="profile", repeat=repeat)
            if answer is None:
                return best
            if best is None or answer["kernels_ns"] < best["kernels_ns"]:
                best = answer
        return best

    def _wait_for_speed(self) -> bool:
        """Wait a bounded time for the machine's usual speed; whether it is there."""
        end = time.perf_counter() + WAIT_S
        while self.probe is not None and not self.probe.undisturbed():
            if time.perf_counter() > end:
                return False
            time.sleep(0.02)
        return True

    def _in_turn(self, number: int) -> Iterator[Entrant]:
        """Those who are here; each round begins with another one."""
        here = [e for e in self.entrants.values() if e.process is not None and not e.resting]
        first = number % max(len(here), 1)
        yield from here[first:] + here[:first]

    def _ask(self, entrant: Entrant, patience_s: float, **command: Any) -> dict[str, Any] | None:
        """A contender's answer; None if it has none, it is then out."""
        if entrant.process is None:
            return None
        try:
            answer = entrant.process.ask(patience_s, slot=self._slot, **command)
        except Gone as fault:
            entrant.out(str(fault))
            return None
        if "error" in answer or "absent" in answer:
            entrant.out(answer.get("absent") or answer["error"])
            return None
        return answer


def speed_probe(threads: int) -> SpeedProbe | None:
    """The probe, or None where the compiler is not installed."""
    try:
        from dlc.speed_probe import SpeedProbe

        return SpeedProbe(threads)
    except ImportError:
        return None


def largest_error(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference relative to the largest expected value of the same output; infinite for other shapes."""
    worst = 0.0
    if got.keys() != expected.keys():
        return float("inf")
    for key, want in expected.items():
        have = got[key]
        if have.shape != want.shape:
            return float("inf")
        if want.size:
            a, b = have.astype(np.float64), want.astype(np.float64)
            scale = float(np.nanmax(np.abs(np.where(np.isfinite(b), b, 0.0)))) or 1.0
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                difference = np.where(same, 0.0, np.abs(a - b))
            worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()) / scale)
    return worst


def ratio_to_best(rows: Sequence[Mapping[str, Any]], name: str = "dlc") -> tuple[float, str] | None:
    """Median of `name` over that of the fastest other contender, and who that is."""
    medians = {row["name"]: row["median"] for row in rows if "median" in row}
    others = {n: m for n, m in medians.items() if n != name}
    if name not in medians or not others:
        return None
    best = min(others, key=lambda n: others[n])
    return medians[name] / others[best], best


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    model = facts.get("model name", "unknown")
    if "cpu family" in facts:  # a virtual machine's name for its processor tells no generation
        model += f" (family {facts['cpu family']}, model {facts['model']})"
    found = {}
    for package in ("dlc", "numpy", "torch", "onnx", "onnxruntime", "openvino", "transformers", "iree-base-compiler", "apache-tvm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": found,
    }


__all__ = ["PAUSE_S", "TOLERANCE", "Contest", "Crew", "largest_error", "machine", "ratio_to_best", "speed_probe"]
