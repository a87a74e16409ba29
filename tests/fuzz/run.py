"""Compile random programs and compare them with the interpreter, within the bounds of `tests/fuzz/bounds.py`.

    python -m tests.fuzz.run 0 2000              seeds 0..1999, two processes, results kept in tests/ledger/fuzz.jsonl
    python -m tests.fuzz.run --seed 17 --shrink  one seed, its program and the least one that still fails
    python -m tests.fuzz.run 0 300 --fresh       without the ledger

Each seed runs on the host's instruction set, on AVX2 (one in ten) or on the baseline (one in ten), with one thread or two.
A process works through many seeds; one that dies is replaced, and its seed counts as a crash.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ledger import Ledger, digest_of, source_digest  # noqa: E402
from tests.fuzz.bounds import Reference, Undetermined, difference, reference  # noqa: E402
from tests.fuzz.generate import Case, case  # noqa: E402

TARGETS = {3: "baseline", 7: "avx2"}


@dataclass(frozen=True)
class Result:
    """What became of a seed.

    Attributes:
        status: `ok`, `wrong` (values outside their bounds), `refused` (an Unsupported), `error` (anything else that was
            raised), `crash` (the process died), `undetermined` (the case shows nothing).
        elements, open_elements: of all outputs; and those whose bound is infinite.
    """

    seed: int
    status: str
    detail: str = ""
    tags: tuple[str, ...] = ()
    elements: int = 0
    open_elements: int = 0
    seconds: float = 0.0


def target_of(seed: int) -> str:
    return TARGETS.get(seed % 10, "host")


def check(
    c: Case, target: str = "host", threads: int = 1, *, given: Reference | None = None, cache: Any = True
) -> Result:
    """Compile `c`, run it and compare."""
    import dlc
    from dlc.errors import DlcError, Unsupported
    from dlc.ir.errors import IndexOutOfRange, NotInBounds, ScatterOutOfRange

    start = time.perf_counter()

    def result(status: str, detail: str = "", elements: int = 0, open_: int = 0) -> Result:
        return Result(c.seed, status, detail, c.tags, elements, open_, round(time.perf_counter() - start, 3))

    wanted: Reference | IndexOutOfRange | ScatterOutOfRange
    try:
        wanted = given if given is not None else reference(c.program, c.inputs)
    except Undetermined as e:
        return result("undetermined", str(e))
    except (IndexOutOfRange, ScatterOutOfRange) as e:
        wanted = e
    try:
        exe = dlc.compile(c.program, target=target, threads=threads, cache=cache, verify_each=c.seed % 4 == 0)
        outs = exe(*(a.copy() for a in c.inputs))  # a donated one may be overwritten
    except (Unsupported, NotInBounds) as e:  # the verifier refuses reads that it cannot prove
        return result("refused", f"{e.code} {first_line(e)}")
    except DlcError as e:
        if not isinstance(wanted, Reference) and "DLC01" not in e.code:
            return result("ok")
        return result("error", f"{e.code} {first_line(e)}")
    except Exception as e:  # noqa: BLE001 - whatever it is, it is a finding
        where = traceback.extract_tb(e.__traceback__)[-1]
        return result("error", f"{type(e).__name__} at {Path(where.filename).name}:{where.lineno}: {first_line(e)}")
    if not isinstance(wanted, Reference):
        return result("wrong", f"no error was raised, but the reference says: {first_line(wanted)}")
    got = outs if isinstance(outs, tuple) else (outs,)
    elements = sum(w.size for w in wanted.results)
    open_ = sum(int(np.isinf(b).sum()) for b in wanted.bounds)
    faults = compare(c, got, wanted.results, wanted.bounds)
    if not faults and c.again is not None and given is None:
        try:
            more = reference(c.program, c.again)
            outs = exe(*(a.copy() for a in c.again))
        except (Undetermined, IndexOutOfRange, ScatterOutOfRange):
            more = None
        except Exception as e:  # noqa: BLE001
            return result("error", f"with other extents: {type(e).__name__} {first_line(e)}", elements, open_)
        if more is not None:
            got = outs if isinstance(outs, tuple) else (outs,)
            faults = [f"with other extents: {f}" for f in compare(c, got, more.results, more.bounds)]
            elements += sum(w.size for w in more.results)
            open_ += sum(int(np.isinf(b).sum()) for b in more.bounds)
    return result("wrong" if faults else "ok", "; ".join(faults), elements, open_)


def compare(c: Case, got: Sequence[Any], want: Sequence[Any], bounds: Sequence[Any]) -> list[str]:
    faults = []
    if len(got) != len(want):
        return [f"{len(got)} outputs, not {len(want)}"]
    for name, g, w, bound in zip(c.program.results, got, want, bounds, strict=True):
        g = np.asarray(g)
        if g.shape != w.shape or g.dtype != w.dtype:
            faults.append(f"{name} is {g.dtype}{list(g.shape)}, not {w.dtype}{list(w.shape)}")
            continue
        wrong, apart = difference(g, w, bound)
        if wrong.any():
            at = tuple(int(k[0]) for k in np.nonzero(np.atleast_1d(wrong)))[: wrong.ndim]
            faults.append(
                f"{name}{list(at)} ({wrong.sum()} of {wrong.size}): {g[at]} and not {w[at]}, "
                f"{float(apart[at]):.3g} apart, bound {float(bound[at]):.3g}"
            )
    return faults


def first_line(e: BaseException) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), "")[:300]


# --- many seeds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A kind of random program.

    Attributes:
        one: runs a seed; tags: the constructs of a seed. Both by reference, for other processes.
        sources: files beside this one that the outcome depends on, and
        stages: those of the compiler.
        longest: seconds of processor time for a seed: compiled code that does not end cannot be interrupted, so its process is.
    """

    one: Callable[[int], Result]
    tags: Callable[[int], tuple[str, ...]]
    sources: tuple[str, ...]
    stages: tuple[str, ...]
    longest: float = 240.0


def one(seed: int) -> Result:
    return check(case(seed), target_of(seed), 1 + seed % 2)


def tags_of(seed: int) -> tuple[str, ...]:
    return case(seed).tags


def _work(tasks: Any, results: Any, one: Callable[[int], Result], longest: float) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import warnings

    warnings.simplefilter("ignore")
    while True:
        seed = tasks.get()
        if seed is None:
            return
        results.put(("start", os.getpid(), seed))
        signal.setitimer(signal.ITIMER_PROF, longest)
        try:
            outcome = one(seed)
        except BaseException as e:  # noqa: BLE001 - the generator's or the reference's fault
            outcome = Result(seed, "error", f"generator: {type(e).__name__}: {first_line(e)}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        results.put(("done", os.getpid(), outcome))


STATIC = Family(
    one,
    tags_of,
    (
        "generate.py",
        "pieces.py",
        "pieces_memory.py",
        "pieces_products.py",
        "pieces_control.py",
        "pieces_library.py",
        "bounds.py",
        "bounds_scalars.py",
        "run.py",
    ),
    ("ir", "passes", "codegen", "costmodel", "runtime"),
)


def run(
    seeds: Iterable[int],
    workers: int = 2,
    ledger: Ledger | None = None,
    report: Callable[[Result], None] | None = None,
    deadline: float | None = None,
    family: Family = STATIC,
) -> list[Result]:
    """The results of many seeds; those the ledger knows are not run again."""
    done: list[Result] = []
    todo: list[int] = []
    keys = {}
    source = source_digest(*family.stages)
    own = digest_of(*((Path(__file__).parent / f).read_bytes() for f in family.sources))
    for seed in seeds:
        keys[seed] = None if ledger is None else ledger.key(f"seed {seed}", digest=digest_of(source, own))
        kept = ledger.get(keys[seed]) if ledger is not None and keys[seed] is not None else None
        if kept is not None:
            done.append(Result(**kept, tags=family.tags(seed)))
        else:
            todo.append(seed)
    if not todo:
        return done
    context = mp.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for seed in todo:
        tasks.put(seed)
    pool = {}

    def start() -> None:
        process = context.Process(target=_work, args=(tasks, results, family.one, family.longest), daemon=True)
        process.start()
        pool[process.pid] = process

    for _ in range(workers):
        start()
    running: dict[int, int] = {}
    left = len(todo)
    try:
        while left and (deadline is None or time.monotonic() < deadline):
            try:
                kind, pid, what = results.get(timeout=0.5)
            except Exception:  # noqa: BLE001 - queue.Empty
                for pid in [p for p, process in pool.items() if not process.is_alive()]:
                    code = pool.pop(pid).exitcode
                    if pid in running:
                        told = f"not done after {family.longest:g} s" if code == -signal.SIGPROF else f"exit code {code}"
                        outcome = Result(running.pop(pid), "crash", told)
                        left -= 1
                        _note(outcome, done, ledger, keys, report)
                    start()
                continue
            if kind == "start":
                running[pid] = what
                continue
            running.pop(pid, None)
            left -= 1
            _note(what, done, ledger, keys, report)
    finally:
        for process in pool.values():
            process.terminate()
    return done


def _note(outcome: Result, done: list[Result], ledger: Any, keys: dict[int, Any], report: Any) -> None:
    done.append(outcome)
    if ledger is not None:
        ledger.put(keys[outcome.seed], {k: v for k, v in asdict(outcome).items() if k != "tags"})
    if report is not None:
        report(outcome)


def summary(results: Sequence[Result]) -> str:
    """Counts by status and construct, and what was refused or failed."""
    lines = [
        f"{len(results)} programs: "
        + ", ".join(f"{n} {s}" for s, n in Counter(r.status for r in results).most_common())
    ]
    elements, open_ = sum(r.elements for r in results), sum(r.open_elements for r in results)
    lines.append(f"{elements} elements compared, {open_} of them not determined")
    for status in ("refused", "error", "crash", "wrong"):
        kinds = Counter(r.detail[:110] if status != "wrong" else "values" for r in results if r.status == status)
        for detail, n in kinds.most_common(40):
            seeds = [r.seed for r in results if r.status == status and (status == "wrong" or r.detail[:110] == detail)]
            lines.append(f"  {status} {n}: {detail}  (seeds {', '.join(map(str, seeds[:8]))})")
    counts = Counter(t for r in results for t in r.tags)
    lines.append("constructs: " + ", ".join(f"{t} {n}" for t, n in sorted(counts.items())))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("range", nargs="*", type=int, default=[0, 2000], help="first seed and end")
    parser.add_argument("--seed", type=int, help="one seed, shown")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the least program that still fails")
    parser.add_argument("--fresh", action="store_true", help="without the ledger")
    parser.add_argument("--target", help="with --seed: host, avx2 or baseline")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all results there")
    args = parser.parse_args(argv)
    if args.seed is not None:
        c = case(args.seed)
        target = args.target or target_of(args.seed)
        outcome = check(c, target, 1 + args.seed % 2)
        if args.shrink and outcome.status in ("wrong", "error", "refused"):
            from tests.fuzz.shrink import shrink

            c = shrink(c, target, outcome.status)
            outcome = check(c, target, 1)
        print(c.program)
        print(outcome.status, outcome.detail)
        return 0 if outcome.status == "ok" else 1
    first, end = (args.range + [0, 2000])[:2] if len(args.range) != 1 else (0, args.range[0])

    def report(r: Result) -> None:
        if r.status not in ("ok", "undetermined"):
            print(f"seed {r.seed} [{target_of(r.seed)}] {r.status}: {r.detail[:260]}", flush=True)

    results = run(range(first, end), args.workers, None if args.fresh else Ledger("fuzz"), report)
    print(summary(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results]))
    return 1 if any(r.status in ("wrong", "error", "crash") for r in results) else 0


if __name__ == "__main__":
    os.environ.setdefault("DLC_CACHE_DIR", str(ROOT / "build" / "fuzz-cache"))
    sys.exit(main())
