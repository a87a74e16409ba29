"""Loads of which a warp reads no run of memory are staged: copied to shared memory a round ahead, 16 bytes at a time.

    for k in 0 .. 64 step 8 {                            copy bf16[16 x 16] staged0[0; 24] from a[0; 64]
      x = load bf16[16 x 16] a[2*k; 64 | 1]              commit
      ...                                                for k in 0 .. 64 step 8 {
                                                  ->       if k + 8 < 64 {
                                                             copy bf16[16 x 16] staged0[384*((k // 8 + 1) % 2); 24] from a[2*k + 16; 64]
                                                           }
                                                           commit
                                                           wait 1
                                                           x = load bf16[16 x 16] staged0[384*(k // 8 % 2); 24 | 1]
                                                           ...

What threads have of an operand of a matrix product is a word here and a word there, so that a load of the warp reads parts of several
rows; the threads of a copy go along the rows. A load whose threads' lanes make up a run is left as it is. Besides,

    it is a loop's own, which moves it, by steps that are known, for more than one round
    it is not masked, and its buffer is only read
    its rows are whole pieces of 16 bytes, at multiples of it as far as is known while compiling
    twice its tile fits into what other loads left of the shared memory

Rows lie apart by as much as gives the threads the fewest conflicts for a bank of the shared memory.

Source: Kerr et al., CUTLASS (2017), software pipelining; PTX ISA 8.0, cp.async.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.codegen import tile
from dlc.codegen.gpu_targets import SHARED_BYTES, WARP
from dlc.codegen.tile import PIECE, Buffer, IndexCond, Stmt, TileProgram, TileType
from dlc.codegen.tile_verify import verify
from dlc.codegen.warp_shares import Shares
from dlc.ir.extent import IntExpr, evaluate, int_expr, substitute, var, variables

_BANKS, _WORD = 32, 4
_ZERO, _ONE = int_expr(0), int_expr(1)
_ME = "me"


def staged(program: TileProgram) -> TileProgram:
    """The program with its scattered loads staged; itself where there are none.

    Raises:
        LayoutConflict, SplitElement, LayoutMismatch: what belongs to products of matrices cannot lie as their instruction has it.
    """
    work = _Staging(program)
    body = work.region(program.body, {})
    if not work.buffers:
        return program
    return verify(replace(program, buffers=(*program.buffers, *work.buffers), body=body))


def divided(s: tile.Copy, me: IntExpr) -> tuple[int, tile.Copy]:
    """What thread `me` does of a copy, neighbours neighbouring pieces of 16 bytes; and how many threads do something."""
    step = PIECE // s.type.dtype.bytes
    extents = (*s.type.slots, s.type.lanes // step)
    own: list[tuple[int, IntExpr, IntExpr]] = []
    to, of, busy = s.offset, s.source_offset, 1
    for extent, a, b in reversed(
        list(zip(extents, (*s.slot_strides, int_expr(step)), (*s.source_strides, int_expr(step)), strict=True))
    ):
        left = WARP // busy
        threads = left if extent % left == 0 else extent if left % extent == 0 else 1
        number = me // busy if threads == left else me // busy % threads
        to, of, busy = to + number * a, of + number * b, busy * threads
        own.insert(0, (extent // threads, a * threads, b * threads))
    slots, strides, sources = (
        zip(*((n, a, b) for n, a, b in own if n > 1), strict=True) if any(n > 1 for n, _, _ in own) else ((), (), ())
    )
    return busy, tile.Copy(TileType(s.type.dtype, slots, step), s.buffer, to, strides, s.source, of, sources)


@dataclass(frozen=True)
class _Stage:
    """A load of a loop that is staged: `name` is the buffer, of two halves of `size` elements."""

    load: tile.Load
    name: str
    strides: tuple[IntExpr, ...]
    size: int

    def copy(self, env: Mapping[str, IntExpr], half: IntExpr) -> tile.Copy:
        """The copy of what the load reads with the loop's variable as in `env`."""
        source = tuple(substitute(x, env) for x in self.load.slot_strides)
        offset = substitute(self.load.offset, env)
        return tile.Copy(self.load.type, self.name, half * self.size, self.strides, self.load.buffer, offset, source)

    def read(self, half: IntExpr) -> tile.Load:
        return replace(self.load, buffer=self.name, offset=half * self.size, slot_strides=self.strides)


class _Staging:
    def __init__(self, program: TileProgram) -> None:
        self.program, self.shares = program, Shares.of(program)
        self.buffers: list[Buffer] = []
        self.left = SHARED_BYTES

    def region(self, body: tuple[Stmt, ...], env: Mapping[str, IntExpr]) -> tuple[Stmt, ...]:
        """The statements; `env` has what is known of the loops' variables around them: where they begin, and their steps."""
        made: list[Stmt] = []
        for s in body:
            match s:
                case tile.For():
                    made += self.loop(s, env)
                case tile.If():
                    made.append(replace(s, then=self.region(s.then, env), orelse=self.region(s.orelse, env)))
                case tile.While():
                    made.append(replace(s, test_body=self.region(s.test_body, env), body=self.region(s.body, env)))
                case _:
                    made.append(s)
        return tuple(made)

    def loop(self, s: tile.For, env: Mapping[str, IntExpr]) -> list[Stmt]:
        here = {name: e for name, e in env.items() if name != s.var}
        if s.step.const is not None:  # the number of the round has a name that no variable of a program can have
            here[s.var] = substitute(s.lo, env) + s.step * var(f"round {s.var}")
        stages = self.stages(s, here)
        body = self.region(s.body, here)
        if not stages:
            return [replace(s, body=body)]
        number = (var(s.var) - s.lo) // s.step
        loads = {each.load: each.read(number % 2) for each in stages}
        first = tuple(each.copy({s.var: s.lo}, _ZERO) for each in stages)
        following = var(s.var) + s.step
        more = tuple(each.copy({s.var: following}, (number + 1) % 2) for each in stages)
        ahead = tile.If((IndexCond(following, "lt", s.hi),), more)
        begun = first if None not in (s.lo.const, s.hi.const) else (tile.If((IndexCond(s.lo, "lt", s.hi),), first),)
        body = tuple(loads.get(x, x) if isinstance(x, tile.Load) else x for x in body)
        return [*begun, tile.Commit(), replace(s, body=(ahead, tile.Commit(), tile.Wait(1), *body))]

    def stages(self, s: tile.For, env: Mapping[str, IntExpr]) -> list[_Stage]:
        """The loop's loads that are staged, as far as there is memory for them."""
        if s.step.const is None or (rounds := (s.hi - s.lo).const) is not None and rounds <= s.step.const:
            return []  # nothing to copy ahead
        bound = {x.var for x in s.body if isinstance(x, tile.IndexOf | tile.Lead)}
        found = []
        for load in s.body:
            if isinstance(load, tile.Load) and s.var in variables(load.offset) and self.suits(load, bound, env):
                strides = self.strides(load)
                slots = load.type.slots
                size = strides[0] * slots[0] if slots else load.type.lanes
                bytes_ = 2 * size * load.type.dtype.bytes
                if bytes_ <= self.left:
                    self.left -= bytes_
                    found.append(_Stage(load, self.name(), tuple(map(int_expr, strides)), size))
                    self.buffers.append(Buffer(found[-1].name, load.type.dtype, "shared", int_expr(2 * size)))
        return found

    def name(self) -> str:
        """Of a buffer."""
        taken = {b.name for b in (*self.program.buffers, *self.buffers)}
        return next(name for n in itertools.count() if (name := f"staged{n}") not in taken)

    def suits(self, load: tile.Load, bound: set[str], env: Mapping[str, IntExpr]) -> bool:
        size = load.type.dtype.bytes
        places = [substitute(x, env) for x in (load.offset, *load.slot_strides)]
        return (
            self.program.buffer(load.buffer).role in ("in", "const")
            and load.mask is None
            and load.lane_stride == _ONE
            and load.type.lanes * size % PIECE == 0
            and all(variables(x).isdisjoint(bound) for x in (load.offset, *load.slot_strides))
            and all((x % (PIECE // size)).const == 0 for x in places)
            and all(x.const is not None for x in load.slot_strides)
            and self.scattered(load)
        )

    def scattered(self, load: tile.Load) -> bool:
        """Whether the threads' lanes of one register do not make up a run of memory."""
        lanes = self.shares.part(load.dst, load.type).lanes
        begins = sorted(self.begins(load, (*load.slot_strides, load.lane_stride)))
        return any(b - a > lanes for a, b in itertools.pairwise(begins))

    def begins(self, load: tile.Load, strides: Sequence[IntExpr]) -> list[int]:
        """Where each thread's share begins, as an offset from the tile's."""
        begin = self.shares.begin(load.dst, load.type, strides, var(_ME))
        return [int(evaluate(begin, {_ME: me})) for me in range(WARP)]

    def strides(self, load: tile.Load) -> list[int]:
        """Strides of the slots in shared memory: rows one after the other, and apart so that threads meet at few banks."""
        type_ = load.type
        inner = [math.prod(type_.slots[n + 1 :]) * type_.lanes for n in range(len(type_.slots))]
        if not inner:
            return []
        step = PIECE // type_.dtype.bytes
        return min(
            ([inner[0] + gap * step, *inner[1:]] for gap in range(_BANKS * _WORD // PIECE)),
            key=lambda x: self.conflicts(load, x),
        )

    def conflicts(self, load: tile.Load, strides: Sequence[int]) -> int:
        """The most words of one bank that the threads ask for at once."""
        begins = self.begins(load, [*map(int_expr, strides), _ONE])
        words = {b * load.type.dtype.bytes // _WORD for b in begins}
        banks = [w % _BANKS for w in words]
        return max(map(banks.count, banks))


__all__ = ["divided", "staged"]
