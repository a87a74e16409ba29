"""Regions of the entry: what each one does, in order, and the native functions that count and time them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dlc.codegen.host_code import PTR, Code
from dlc.codegen.host_launch import FRAME
from dlc.ir.loc import UNKNOWN, Loc


@dataclass(slots=True)
class HostRegion:
    """A region of the program.

    Attributes:
        kind: program, then, else, while or for.
        items: `dlc.runtime.control` lists what they are.
    """

    kind: str
    loc: Loc = UNKNOWN
    items: list[list[Any]] = field(default_factory=list)

    def add_call(self, number: int) -> None:
        last = self.items[-1] if self.items else None
        if last is not None and last[0] == "calls" and last[2] == number - 1:
            last[2] = number
        else:
            self.items.append(["calls", number, number])


class Regions:
    """The regions in the making, and the text that counts a visit.

    A visit adds one to a word of the executable's, without a lock and shared by all calls under way; the time is only
    taken when the frame has a place for it.
    """

    def __init__(self, code: Code, counted: bool) -> None:
        self.code, self.counted = code, counted
        self.listed = [HostRegion("program")]
        self.current = self.listed[0]

    def new(self, kind: str, loc: Loc) -> int:
        self.listed.append(HostRegion(kind, loc))
        return len(self.listed) - 1

    @contextmanager
    def visit(self, number: int) -> Iterator[None]:
        """Text made inside belongs to the region; it has to begin and end in straight line."""
        around, self.current = self.current, self.listed[number]
        code = self.code
        index = code.constant(number)
        began = ""
        if self.counted:
            began = code.value(f"llvm.call @visit(%frame, {index}) : ({PTR}, i64) -> i64")
        yield
        if self.counted:
            code.emit(f"llvm.call @leave(%frame, {index}, {began}) : ({PTR}, i64, i64) -> ()")
        self.current = around


VISITS = f"""\
llvm.func internal @visit(%frame: {PTR}, %region: i64) -> i64 attributes {{no_inline}} {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %null = llvm.mlir.zero : {PTR}
  %counts_at = llvm.getelementptr %frame[{FRAME["counts"]}] : ({PTR}) -> {PTR}, i64
  %counts = llvm.load %counts_at : {PTR} -> {PTR}
  %times_at = llvm.getelementptr %frame[{FRAME["times"]}] : ({PTR}) -> {PTR}, i64
  %times = llvm.load %times_at : {PTR} -> {PTR}
  %counting = llvm.icmp "ne" %counts, %null : {PTR}
  llvm.cond_br %counting, ^count, ^clock
^count:
  %word = llvm.getelementptr %counts[%region] : ({PTR}, i64) -> {PTR}, i64
  %before = llvm.atomicrmw add %word, %c1 monotonic : {PTR}, i64
  llvm.br ^clock
^clock:
  %timing = llvm.icmp "ne" %times, %null : {PTR}
  llvm.cond_br %timing, ^begin, ^out(%c0 : i64)
^begin:
  %now = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.br ^out(%now : i64)
^out(%began: i64):
  llvm.return %began : i64
}}
llvm.func internal @leave(%frame: {PTR}, %region: i64, %began: i64) attributes {{no_inline}} {{
  %null = llvm.mlir.zero : {PTR}
  %times_at = llvm.getelementptr %frame[{FRAME["times"]}] : ({PTR}) -> {PTR}, i64
  %times = llvm.load %times_at : {PTR} -> {PTR}
  %timing = llvm.icmp "ne" %times, %null : {PTR}
  llvm.cond_br %timing, ^add, ^out
^add:
  %now = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  %took = llvm.sub %now, %began : i64
  %word = llvm.getelementptr %times[%region] : ({PTR}, i64) -> {PTR}, i64
  %sum = llvm.load %word : {PTR} -> i64
  %all = llvm.add %sum, %took : i64
  llvm.store %all, %word : i64, {PTR}
  llvm.br ^out
^out:
  llvm.return
}}
"""
