"""The meaning of a warp's program: its 32 threads with the memory they share, one running at a time.

A thread runs until it must wait for the others, then the next one does. Which comes first is for the caller to say: where two
orders give different results a `Sync` is missing. Threads that come to different statements to wait are a fault of the program.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.codegen import tile
from dlc.codegen.gpu_targets import WARP
from dlc.codegen.matrix_unit import A_REGISTERS, B_REGISTERS, C_REGISTERS, COLUMNS, ROWS, WORDS, A, B, C
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_interp import Machine, matrix_product
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.ir.extent import evaluate

Array = np.ndarray[Any, Any]


def run(
    program: TileProgram, buffers: Mapping[str, Array], symbols: Mapping[str, int] | None = None, *, backwards: bool = False
) -> list[str]:
    """As `tile_interp.run`, of a program that `warp.distribute` made.

    Args:
        backwards: the last thread of a warp runs first.
    """
    verify(program)
    env = {("#" + name.lstrip("#")): int(value) for name, value in (symbols or {}).items()}
    first = Machine(program, buffers, env)
    failed: dict[str, None] = {}
    order = range(WARP - 1, -1, -1) if backwards else range(WARP)
    for task in range(evaluate(program.tasks, env)):
        first.forget_scratch()
        failed |= _Warp(first, env, order).run(task)
    return list(failed)


class _Broken(Exception):
    """Another thread has failed."""


class _Warp:
    def __init__(self, first: Machine, env: dict[str, int], order: Sequence[int]) -> None:
        self.order = order
        self.turns = [threading.Semaphore(0) for _ in range(WARP)]
        self.after = dict(zip(order, [*order[1:], order[0]], strict=True))
        self.threads = [_Thread(self, number, first, env) for number in range(WARP)]
        self.at: list[tile.Stmt | None] = [None] * WARP
        self.error: BaseException | None = None

    def run(self, task: int) -> dict[str, None]:
        runners = [threading.Thread(target=self.one, args=(t, task)) for t in self.threads]
        for r in runners:
            r.start()
        self.turns[self.order[0]].release()
        for r in runners:
            r.join()
        if self.error is not None:
            raise self.error
        return {c: None for t in self.threads for c in t.failed}

    def one(self, thread: _Thread, task: int) -> None:
        try:
            self.turns[thread.number].acquire()
            if self.error is None:
                thread.start(task)
                self.wait(thread.number, None)
        except _Broken:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.turns[self.after[thread.number]].release()

    def wait(self, number: int, stmt: tile.Stmt | None) -> None:
        """Let the others come to where this thread is: `stmt`, or its end."""
        self.at[number] = stmt
        self.turns[self.after[number]].release()
        self.turns[number].acquire()
        if self.error is not None:
            raise _Broken
        # the first one comes back when all have stopped; those after it see that some have gone on
        if number == self.order[0] and any(other is not stmt for other in self.at):
            program = self.threads[0].program
            raise InvalidTile(f"{program.name}.tile", name=program.name, reason=f"threads part before {stmt}")


    def operands(self, side: int, m: int, n: int) -> tuple[Array, Array]:
        """Words of 16 rows and of 8 columns, from the threads that have given theirs."""
        a, b = np.empty((ROWS, WORDS), np.int32), np.empty((WORDS, COLUMNS), np.int32)
        for number, thread in enumerate(self.threads):
            rows, columns = thread.given[side]
            for slot, at in enumerate(A_REGISTERS):
                a[A.index(number, slot)] = rows[m, at]
            for slot, at in enumerate(B_REGISTERS):
                b[B.index(number, slot)] = columns[at, n]
        return a, b


class _Thread(Machine):
    def __init__(self, warp: _Warp, number: int, first: Machine, env: dict[str, int]) -> None:
        self.program, self.env, self.memory = first.program, dict(env), first.memory
        self.arrived, self.tiles, self.dtypes, self.failed = first.arrived, {}, {}, {}
        self.warp, self.number = warp, number
        self.given: list[tuple[Array, ...]] = [(), ()]
        self.exchanges = 0

    def _thread(self, s: tile.Thread) -> None:
        self.env[s.var] = self.number

    def _sync(self, s: tile.Sync) -> None:
        self.warp.wait(self.number, s)

    def _shuffle(self, s: tile.Shuffle) -> None:
        side = self.give(s, self.tiles[s.src])
        (value,) = self.warp.threads[self.index(s.thread)].given[side]
        self.keep(s.dst, self.dtypes[s.src], value)

    def _mma(self, s: tile.Mma) -> None:
        side = self.give(s, self.tiles[s.a].reshape(-1, A.slots), self.tiles[s.b].reshape(B.slots, -1))
        blocks = self.given[side][1].shape[1]
        acc = self.tiles[s.acc]
        made = acc.reshape(-1, 2, blocks, 2).copy()
        places = [C.index(self.number, slot) for slot in range(C.slots)]
        for m, n in itertools.product(range(len(made)), range(blocks)):
            a, b = self.warp.operands(side, m, n)
            for (i, j), at in zip(places, C_REGISTERS, strict=True):
                old = made[m, at // 2, n, at % 2]
                made[m, at // 2, n, at % 2] = matrix_product(a[i : i + 1], b[:, j : j + 1], old.reshape(1, 1), s.left, s.right)[0, 0]
        self.keep(s.dst, self.dtypes[s.acc], made.reshape(acc.shape))

    def give(self, s: tile.Stmt, *values: Array) -> int:
        """Let the others see these values, and wait for theirs; where they lie among what is given."""
        side = self.exchanges % 2  # a thread that runs ahead to the next exchange must not overwrite what others still read
        self.exchanges += 1
        self.given[side] = values
        self.warp.wait(self.number, s)
        return side
