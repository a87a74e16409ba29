"""Place buffers of known lifetimes below a capacity, or prove that it cannot be done.

  dlc pack buffers.csv --capacity 1048576 -o packed.csv
  dlc pack buffers.csv --capacity 1MiB --time-limit 600
  dlc pack buffers.csv

FILE has MiniMalloc's format: a line id,lower,upper,size and a buffer per line, alive from lower up to, but not in, upper.
Columns alignment, hint and offset (where the buffer has to be) may be there as well. The answer is the same table with an
offset in each row. Without --capacity the buffers are packed as low as is found in time.

The exit code is 0 when they are packed, 6 when it is proven that they cannot be, 3 when neither was found in time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dlc.commands import options as shared
from dlc.console import Console, bytes_text, seconds_text
from dlc.errors import Infeasible, Unsupported
from dlc.ir.loc import Loc
from dlc.native_packing import native_advance
from dlc.packing_csv import Table, read_buffers, write_buffers
from dlc.passes.packing import Infeasible as NoPacking
from dlc.passes.packing import NotFound, Packed, most_live, pack, pack_least
from dlc.passes.packing.buffers import check, height


class CannotBePacked(Infeasible):
    """It is proven that buffers do not fit below a capacity."""

    code = "DLC0698"
    template = "the buffers do not fit below {capacity}: {proof}"
    hint = "no capacity below {least} can do"


class NotPackedInTime(Unsupported):
    """Neither a packing nor a proof that there is none was found in the time given."""

    code = "DLC0692"
    template = "not found in time: {seconds:.1f} s and {nodes} decisions gave no packing below {capacity}, and no proof"
    hint = "give it more time (--time-limit) or another --seed"


class FixedCollide(Infeasible):
    """Buffers whose offsets are given overlap."""

    code = "DLC0693"
    template = "the offsets that are given collide: {which}"
    hint = "no capacity can do; leave one of the two offsets out"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="buffers as CSV")
    parser.add_argument("--capacity", type=shared.byte_size, metavar="N", help="bytes, or 256KiB, 16MiB, 1GiB")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="the table with offsets (default: none written)"
    )
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the search's restarts (default 0)")
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    table = read_buffers(options.file)
    began = time.perf_counter()
    with console.step(f"packing {len(table.buffers)} buffers"):
        offsets = _offsets(table, options)
    found = {
        "buffers": len(table.buffers),
        "capacity": options.capacity,
        "height": height(table.buffers, offsets),
        "bound": most_live(table.buffers)[0],
        "seconds": round(time.perf_counter() - began, 3),
    }
    if options.output is not None:
        write_buffers(options.output, table, offsets)
        found["output"] = str(options.output)
    console.emit(found)
    console.say(
        f"{found['buffers']} buffers in {bytes_text(found['height'])} ({found['height']} bytes; at most "
        f"{found['bound']} are alive at once), {seconds_text(found['seconds'])}"
    )
    return 0


def _offsets(table: Table, options: argparse.Namespace) -> tuple[int, ...]:
    native = native_advance()
    given = [b for b in table.buffers if b.offset is not None]
    wrong = check(given, [b.offset for b in given if b.offset is not None])
    if wrong is not None:
        raise FixedCollide(Loc(str(options.file)), which=wrong)
    if options.capacity is None:
        lowest = pack_least(table.buffers, time_limit=options.time_limit, seed=options.seed, native=native)
        assert lowest is not None, "the offsets that are given do not collide"
        return lowest.offsets
    capacity, loc = options.capacity, Loc(str(options.file))
    answer = pack(table.buffers, capacity, time_limit=options.time_limit, seed=options.seed, native=native)
    match answer:
        case Packed(offsets):
            return offsets
        case NoPacking(proof, least):
            raise CannotBePacked(loc, capacity=capacity, proof=proof, least=least)
        case NotFound(seconds, nodes):
            raise NotPackedInTime(loc, seconds=seconds, nodes=nodes, capacity=capacity)
