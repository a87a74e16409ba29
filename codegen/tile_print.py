"""The `.tile` text of a tile program: what `str(program)` gives and `tile_parse.parse` reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dlc.codegen.tile import (
    Bitcast,
    Broadcast,
    Cast,
    Check,
    Commit,
    Const,
    Copy,
    Dot,
    Fold,
    For,
    FromIndex,
    Gather,
    If,
    IndexOf,
    Iota,
    Lead,
    Load,
    Lookup,
    Mask,
    MatDot,
    Mma,
    Op,
    Prefetch,
    Reduce,
    Scatter,
    Shuffle,
    Slice,
    Stack,
    Stmt,
    Store,
    Sync,
    Thread,
    TileProgram,
    TileType,
    Unpack,
    View,
    Wait,
    While,
    Zip,
)
from dlc.ir.extent import IntExpr


def show_value(value: float | int | bool) -> str:
    """Text of a constant that reads back as the same value."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isnan(value):
            return "nan"
        case float() if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        case _:
            text = repr(value)
            return text if "." in text or "e" not in text else text.replace("e", ".0e")


def show_program(program: TileProgram) -> str:
    """The `.tile` text."""
    return "\n".join(line for line, _ in program_lines(program)) + "\n"


def program_lines(program: TileProgram) -> Iterator[tuple[str, Stmt | None]]:
    """The lines of the text form, each with the statement it begins, if any."""
    yield f"tile {program.name}(", None
    for b in program.buffers:
        yield f"  {b.role} {b.name}: {b.dtype}[{b.size}],", None
    symbols = f" symbols({', '.join(program.symbols)})" if program.symbols else ""
    yield f"){symbols} task {program.task_var} in {program.tasks} {{", None
    yield from _body_lines(program.body, "  ")
    loc = f" loc({_quoted(str(program.loc))})" if program.loc else ""
    yield f"}}{loc}", None


def _body_lines(body: tuple[Stmt, ...], indent: str) -> Iterator[tuple[str, Stmt | None]]:
    deeper = indent + "  "
    for stmt in body:
        match stmt:
            case For():
                carry = _show_carries(stmt.carries)
                unroll = f" unroll {stmt.unroll}" if stmt.unroll != 1 else ""
                head = f"for {stmt.var} in {stmt.lo} .. {stmt.hi} step {stmt.step}{carry}{unroll} {{"
                yield f"{indent}{_show_results(stmt.results)}{head}", stmt
                yield from _body_lines(stmt.body, deeper)
                yield from _yield_line(stmt.yields, deeper)
                yield f"{indent}}}", None
            case If():
                cond = stmt.cond if isinstance(stmt.cond, str) else " and ".join(map(str, stmt.cond))
                kind = "when" if isinstance(stmt.cond, str) else "if"
                yield f"{indent}{_show_results(stmt.results)}{kind} {cond} {{", stmt
                yield from _body_lines(stmt.then, deeper)
                yield from _yield_line(stmt.then_yields, deeper)
                if stmt.orelse or stmt.else_yields:
                    yield f"{indent}}} else {{", None
                    yield from _body_lines(stmt.orelse, deeper)
                    yield from _yield_line(stmt.else_yields, deeper)
                yield f"{indent}}}", None
            case While():
                yield f"{indent}{_show_results(stmt.results)}while{_show_carries(stmt.carries)} {{", stmt
                yield from _body_lines(stmt.test_body, deeper)
                yield f"{deeper}test {stmt.test}", None
                yield f"{indent}}} do {{", None
                yield from _body_lines(stmt.body, deeper)
                yield from _yield_line(stmt.yields, deeper)
                yield f"{indent}}}", None
            case _:
                yield indent + show_stmt(stmt), stmt


def _show_results(results: tuple[str, ...]) -> str:
    return f"({', '.join(results)}) = " if results else ""


def _show_carries(carries: tuple[tuple[str, str], ...]) -> str:
    return f" carry ({', '.join(f'{name} = {init}' for name, init in carries)})" if carries else ""


def _yield_line(yields: tuple[str, ...], indent: str) -> Iterator[tuple[str, Stmt | None]]:
    if yields:
        yield f"{indent}yield ({', '.join(yields)})", None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _show_mask(mask: str | None) -> str:
    return f" mask {mask}" if mask else ""


def _show_masked(mask: str | None, pad: float | int | bool) -> str:
    return f"{_show_mask(mask)} pad {show_value(pad)}" if mask or repr(pad) != "0" else ""


def _show_place(offset: IntExpr, slot_strides: tuple[IntExpr, ...], lane_stride: IntExpr | None = None) -> str:
    strides = f"; {', '.join(map(str, slot_strides))}" if slot_strides else ""
    return f"[{offset}{strides}{'' if lane_stride is None else f' | {lane_stride}'}]"


def show_stmt(stmt: Stmt) -> str:
    """Text of a statement without regions."""
    match stmt:
        case Const():
            return f"{stmt.dst} = const {stmt.type} {show_value(stmt.value)}"
        case Iota():
            return f"{stmt.dst} = iota {TileType(stmt.dtype, (), stmt.lanes)} from {stmt.start}"
        case FromIndex():
            return f"{stmt.dst} = index {stmt.dtype} {stmt.expr}"
        case IndexOf():
            return f"let {stmt.var} = {stmt.src}"
        case Lead():
            return f"let {stmt.var} = lead {stmt.buffer} {stmt.bytes}"
        case Load():
            place = _show_place(stmt.offset, stmt.slot_strides, stmt.lane_stride)
            return f"{stmt.dst} = load {stmt.type} {stmt.buffer}{place}{_show_masked(stmt.mask, stmt.pad)}"
        case Gather():
            return f"{stmt.dst} = gather {stmt.buffer}[{stmt.offsets}]{_show_masked(stmt.mask, stmt.pad)}"
        case Store():
            place = _show_place(stmt.offset, stmt.slot_strides, stmt.lane_stride)
            nontemporal = " nontemporal" if stmt.nontemporal else ""
            return f"store {stmt.buffer}{place} = {stmt.src}{_show_mask(stmt.mask)}{nontemporal}"
        case Scatter():
            op = f" op {stmt.op}" if stmt.op else ""
            return f"scatter {stmt.buffer}[{stmt.offsets}] = {stmt.src}{_show_mask(stmt.mask)}{op}"
        case Op():
            return f"{stmt.dst} = {stmt.op}({', '.join(stmt.args)})"
        case Cast():
            return f"{stmt.dst} = cast<{stmt.dtype}, {stmt.mode}>({stmt.src})"
        case Bitcast():
            return f"{stmt.dst} = bitcast<{stmt.dtype}>({stmt.src})"
        case View():
            return f"{stmt.dst} = view<{stmt.dtype}>({stmt.src})"
        case Unpack():
            return f"{stmt.dst} = unpack {stmt.bits} {stmt.src}"
        case Lookup():
            return f"{stmt.dst} = lookup {stmt.dtype} ({', '.join(map(show_value, stmt.table))}) {stmt.src}"
        case Zip():
            return f"{stmt.dst} = zip {stmt.low} {stmt.high} half {stmt.half}"
        case Dot():
            return f"{stmt.dst} = dot<{stmt.left}, {stmt.right}>({stmt.a}, {stmt.b}, {stmt.acc})"
        case MatDot():
            return f"{stmt.dst} = matdot<{stmt.left}, {stmt.right}>({stmt.a}, {stmt.b}, {stmt.acc})"
        case Mma():
            return f"{stmt.dst} = mma<{stmt.left}, {stmt.right}>({stmt.a}, {stmt.b}, {stmt.acc})"
        case Broadcast():
            return f"{stmt.dst} = broadcast {stmt.type} {stmt.src}"
        case Slice():
            return f"{stmt.dst} = slice {stmt.src}[{', '.join(map(str, stmt.index))}]"
        case Stack():
            return f"{stmt.dst} = stack({', '.join(stmt.srcs)})"
        case Reduce():
            axis = "lanes" if stmt.axis is None else f"slot {stmt.axis}"
            return f"{stmt.dst} = reduce {stmt.op} {axis} {stmt.src}"
        case Fold():
            return f"{stmt.dst} = fold {stmt.op} {stmt.src}"
        case Mask():
            return f"{stmt.dst} = mask {stmt.lanes} below {stmt.count}"
        case Prefetch():
            return f"prefetch {stmt.buffer}[{stmt.offset}] {'write' if stmt.write else 'read'} {stmt.locality}"
        case Check():
            return f"check {stmt.cond} {_quoted(stmt.check_id)}"
        case Thread():
            return f"let {stmt.var} = thread"
        case Shuffle():
            return f"{stmt.dst} = shuffle {stmt.src} from {stmt.thread}"
        case Sync():
            return "sync"
        case Copy():
            to, of = _show_place(stmt.offset, stmt.slot_strides), _show_place(stmt.source_offset, stmt.source_strides)
            return f"copy {stmt.type} {stmt.buffer}{to} from {stmt.source}{of}"
        case Commit():
            return "commit"
        case Wait():
            return f"wait {stmt.but}"
        case For() | If() | While():
            raise AssertionError("statements with regions are printed line by line")
