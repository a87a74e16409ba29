"""Staged loads of a warp: what is staged and what is not, the same bits, faults that the interpreter finds, the instructions."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import tile, tile_interp, warp_interp
from dlc.codegen.gpu_targets import GPU_TARGETS, SHARED_BYTES
from dlc.codegen.ptx import ptx_kernel
from dlc.codegen.tile import Copy, Stmt, TileProgram, TileType
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.codegen.warp import distribute
from dlc.codegen.warp_staging import divided, staged
from dlc.ir.extent import evaluate, int_expr, var

sys.path.insert(0, str(Path(__file__).parent))
from test_matrix_unit import KINDS, layer, product
from warp_harness import compare, memory, same, tiles

BYTES = """tile k(in a: u8[65536], inout b: u8[65536], in j: i64[4], out z: i32[512],) symbols(#n) task t in 1 {
  s = const i32[16, 1 x 32] 0
  ones = const i32[8, 1 x 32] 16843009
  o = load i64 j[0 | 0]
  let v = o
  (r) = for k in 0 .. 4 step 1 carry (acc = s) {
    x = load u8[16 x 32] a[512*k; 32 | 1]
    w = view<i32>(x)
    d = matdot<u8, i8>(w, ones, acc)
    yield (d)
  }
  store z[0; 32, 32 | 1] = r
}"""
LOAD = "x = load u8[16 x 32] a[512*k; 32 | 1]"


def copies(program: TileProgram) -> list[Copy]:
    return [s for s in tile.walk(program.body) if isinstance(s, Copy)]


def changed(old: str, new: str) -> TileProgram:
    assert BYTES.count(old) == 1
    return verify(parse(BYTES.replace(old, new)))


def check(program: TileProgram, **symbols: int) -> TileProgram:
    """The staged program, whose bits are those of the given one, with whole registers and on threads."""
    made = staged(program)
    assert parse(str(made)) == made
    start = memory(program, symbols)
    want = {name: value.copy() for name, value in start.items()}
    tile_interp.run(program, want, symbols)
    for name, got in compare(made, symbols, start).items():
        same(got, want[name], name)
    return made


def test_staged_operands_as_text(golden: Callable[[str], None]) -> None:
    made = check(product("bf16, bf16", 16, 1))
    golden(f"{made}\n{distribute(made)}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "vectors"), [(16, 2), pytest.param(48, 3, marks=pytest.mark.slow)])
def test_operands_of_matrix_products_keep_their_bits(kind: str, rows: int, vectors: int) -> None:
    made = check(product(kind, rows, vectors))
    assert len(copies(made)) == 4, "both operands, before the loop and ahead in it"


@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 5])
def test_any_number_of_rounds(rounds: int) -> None:
    """What a round that does not come would copy may lie outside of the buffer, and the interpreter would say so."""
    text = BYTES.replace("0 .. 4 step 1", "0 .. #n step 1").replace("in a: u8[65536]", "in a: u8[512*#n]")
    assert copies(check(parse(text), n=rounds))


def test_loops_around_and_after_each_other() -> None:
    loop = BYTES[BYTES.index("  (r)") : BYTES.index("  store")]
    second = loop.replace("(r)", "(r2)").replace("acc = s", "acc = r").replace("512*k", "512*k + 512")
    around = f"(q) = for i in 0 .. 3 step 1 carry (p = s) {{\n{loop}{second} g = add(p, r2)\n yield (g)\n}}\n store z[0; 32, 32 | 1] = q\n}}"
    around = around.replace("512*k;", "2048*i + 512*k;").replace("512*k + 512;", "2048*i + 512*k + 512;")
    made = check(parse(BYTES[: BYTES.index("  (r)")] + around))
    assert len(copies(made)) == 4 and sum(b.role == "shared" for b in made.buffers) == 2


MORE = {
    "beside a buffer that is called what shared ones are": ("inout b: u8[65536]", "inout staged0: u8[65536]"),
    "another lower bound and step": ("0 .. 4 step 1", "8 .. 40 step 16"),
    "a lower bound that is not known": ("0 .. 4 step 1", "#n .. #n + 3 step 1"),
    "an aligned place that is not known": ("a[512*k;", "a[512*k + 16*v;"),
    "rows that lie far apart": ("a[512*k; 32 |", "a[32*k; 1024 |"),
}


@pytest.mark.parametrize("name", MORE)
def test_what_else_is_staged(name: str) -> None:
    assert copies(check(changed(*MORE[name]), n=2))


NOT = {
    "a place that is no multiple of 16 bytes": ("a[512*k;", "a[512*k + 8;"),
    "a place of which that is not known": ("a[512*k;", "a[512*k + 4*v;"),
    "rows that are none apart": ("a[512*k; 32 |", "a[512*k; 24 |"),
    "rows whose distance is not known": ("a[512*k; 32 |", "a[512*k; 16*#n |"),
    "lanes apart": (LOAD, LOAD.replace("| 1]", "| 2]")),
    "a mask": (LOAD, "m = mask 32 below 20\n" + LOAD + " mask m pad 0"),
    "a buffer that is written": (LOAD, LOAD.replace("a[", "b[")),
    "a place that the round finds out": (LOAD, "let v2 = o\n" + LOAD.replace("512*k", "512*k + 512*v2")),
    "what does not move": ("a[512*k;", "a[512*v;"),
    "one round": ("0 .. 4 step 1", "0 .. 4 step 4"),
    "steps that are not known": ("0 .. 4 step 1", "0 .. 4 step #n"),
}


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_staged(name: str) -> None:
    program = changed(*NOT[name])
    assert staged(program) is program
    assert copies(staged(parse(BYTES)))


@pytest.mark.parametrize(
    "more", ["u8[4 x 128] a[512*k; 128 | 1]", "f32[2 x 64] f[128*k; 64 | 1]", "f32[2 x 16] f[32*k; 16 | 1]"]
)
def test_what_the_warp_reads_in_runs_is_not_staged(more: str) -> None:
    made = staged(parse(BYTES.replace("in j", "in f: f32[512], in j").replace(LOAD, f"{LOAD}\n x2 = load {more}")))
    assert {c.source for c in copies(made)} == {"a"} and f"x2 = load {more}" in str(made)


def test_rows_of_less_than_a_piece_are_not_staged() -> None:
    text = BYTES.replace("in j", "in f: i32[256], in j").replace(
        "d = mat", "y = load i32[16, 1 x 1] f[64*k; 4, 0 | 1]\n c = mat"
    )
    made = check(parse(text.replace("yield", "d = add(c, y)\n yield")))
    assert {c.source for c in copies(made)} == {"a"}


def test_a_tile_that_is_too_large() -> None:
    """Twice 512 rows that are 48 bytes apart are all that there is; 16 more are not staged, nor is any other tile then."""
    assert SHARED_BYTES == 2 * 512 * 48
    for rows, fits in ((512, True), (528, False)):
        program = parse(BYTES.replace("[16", f"[{rows}").replace("i32[512]", f"i32[{32 * rows}]"))
        assert bool(copies(staged(program))) == fits
        text = str(program).replace(
            "d = mat",
            "x2 = load u8[16 x 32] a[512*k; 32 | 1]\nw2 = view<i32>(x2)\nd2 = matdot<u8, i8>(w2, ones, s2)\nd = mat",
        )
        made = staged(parse(text.replace("ones =", "s2 = const i32[16, 1 x 32] 0\nones =")))
        assert ("x2 = load u8[16 x 32] a[" in str(made)) == fits and len(copies(made)) == 2


@pytest.mark.parametrize("lanes", [16, 32, 64, 128])
@pytest.mark.parametrize("slots", [(), (1,), (3,), (16,), (48,), (8, 3), (5, 4), (2, 2, 6)])
def test_every_piece_is_copied_once(slots: tuple[int, ...], lanes: int) -> None:
    """By one thread; pieces that follow each other in a row by neighbours."""
    strides = tuple(int_expr(1000 * 10**n) for n in range(len(slots)))
    threads, own = divided(
        Copy(TileType(tile.DTYPES["u8"], slots, lanes), "s", int_expr(0), strides, "a", int_expr(0), strides), var("me")
    )
    assert own.type.lanes == 16 and own.offset == own.source_offset and own.slot_strides == own.source_strides
    seen: dict[int, int] = {}
    for me in range(threads):
        for at in itertools.product(*map(range, own.type.slots)):
            place = evaluate(own.offset, {"me": me}) + sum(
                i * (x.const or 0) for i, x in zip(at, own.slot_strides, strict=True)
            )
            assert place not in seen
            seen[place] = me
    rows = [sum(i * 1000 * 10**n for n, i in enumerate(at)) for at in itertools.product(*map(range, slots))]
    assert sorted(seen) == sorted(row + 16 * n for row in rows for n in range(lanes // 16))
    assert all(seen[row + 16 * n] == seen[row] + n for row in rows for n in range(lanes // 16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "vectors"), [(16, 1), (48, 3)])
def test_threads_read_different_banks(kind: str, rows: int, vectors: int) -> None:
    thread = distribute(staged(product(kind, rows, vectors)))
    shared = {b.name: b.dtype.bytes for b in thread.buffers if b.role == "shared"}
    loads = [s for s in tile.walk(thread.body) if isinstance(s, tile.Load) and s.buffer in shared]
    assert len(loads) == 2
    for s in loads:
        words = {evaluate(s.offset, {"warp_thread": t, "k": 0}) * shared[s.buffer] // 4 for t in range(32)}
        assert len({w % 32 for w in words}) == 32


# --- faults -------------------------------------------------------------------------------------------------------------


def without(body: tuple[Stmt, ...], kind: type[Stmt], number: int) -> tuple[Stmt, ...]:
    """The statements but the one of a kind with this number, in the order of the text."""
    count = itertools.count()

    def region(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        made: list[Stmt] = []
        for s in stmts:
            if isinstance(s, kind) and next(count) == number:
                continue
            if isinstance(s, tile.For):
                s = replace(s, body=region(s.body))
            elif isinstance(s, tile.If):
                s = replace(s, then=region(s.then), orelse=region(s.orelse))
            made.append(s)
        return tuple(made)

    return region(body)


def run(program: TileProgram, backwards: bool | None = None) -> None:
    buffers = memory(program, {"n": 1})
    if backwards is None:
        tile_interp.run(program, buffers, {"n": 1})
    else:
        warp_interp.run(program, buffers, {"n": 1}, backwards=backwards)


@pytest.mark.parametrize(
    ("kind", "number"), [(tile.Wait, 0), (tile.Commit, 0), (tile.Commit, 1), (tile.Copy, 0), (tile.Copy, 1)]
)
def test_reading_what_has_not_arrived_is_found(kind: type[Stmt], number: int) -> None:
    """Without the wait, a group's end, or a copy."""
    program = staged(parse(BYTES))
    with pytest.raises(InvalidTile, match="'staged0' is read at 0..751 before all of it|at 768..1519 before all of it"):
        run(replace(program, body=without(program.body, kind, number)))


def test_waiting_for_all_but_too_many_is_found() -> None:
    program = parse(str(staged(parse(BYTES))).replace("wait 1", "wait 2"))
    with pytest.raises(InvalidTile, match="before all of it has arrived"):
        run(program)


def test_a_sync_that_is_missing_is_found() -> None:
    """After the wait, for what others copied, and before a copy, for what others still read; the first one has nothing before it."""
    late = BYTES.replace("acc = s)", "acc = s2)").replace(
        "d = matdot<u8, i8>(w, ones, acc)", "d = add(acc, w)"
    )  # no exchange in the loop
    late = late.replace("ones =", "s2 = const i32[16 x 8] 0\nones =").replace(
        "  store", "  q = matdot<u8, i8>(r, ones, s)\n  store"
    )
    thread = distribute(staged(parse(late.replace("| 1] = r", "| 1] = q"))))
    syncs = sum(isinstance(s, tile.Sync) for s in tile.walk(thread.body))
    found = []
    for number in range(syncs):
        program = replace(thread, body=without(thread.body, tile.Sync, number))
        for backwards in (False, True):
            try:
                run(program, backwards)
            except InvalidTile as error:
                assert "before all of it has arrived" in str(error)
                found.append(number)
    assert syncs == 4 and set(found) == {1, 2}, "the last one is for the results"


def test_what_is_copied_is_what_was_in_memory() -> None:
    program = parse("""tile k(in a: f32[4], inout z: f32[4], shared s: f32[4],) task t in 1 {
      copy f32[x 4] s[0] from z[0]
      commit
      x = load f32[x 4] a[0 | 1]
      store z[0 | 1] = x
      wait 0
      y = load f32[x 4] s[0 | 1]
      w = add(x, y)
      store z[0 | 1] = w
    }""")
    assert parse(str(program)) == program
    z = np.arange(4, dtype=np.float32)
    tile_interp.run(program, {"a": np.full(4, 10, np.float32), "z": z})
    assert list(z) == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("staged0[0; 48]", "staged0[8; 48]", "a copy at 'staged0'.8., which is no multiple of 16 bytes"),
        ("from a[0; 32]", "from a[0; 24]", "a copy at 'a'.0., which is no multiple"),
        ("from a[0; 32]", "from a[65536; 32]", "access to 'a' at 65536"),
    ],
)
def test_copies_elsewhere_are_found(old: str, new: str, said: str) -> None:
    text = str(staged(parse(BYTES)))
    assert text.count(old) == 1
    with pytest.raises(InvalidTile, match=said):
        run(parse(text.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("shared staged0", "scratch staged0", "buffer 'staged0' is 'scratch', and copies go to shared ones"),
        (
            "from a[0; 32]",
            "from staged0[0; 48]",
            "buffer 'staged0' is 'shared', and copies come from memory that is given",
        ),
        ("shared staged0: u8[1536]", "shared staged0: i8[1536]", "'staged0' holds i8, 'a' u8, not u8"),
        ("shared staged0: u8[1536]", "shared staged0: u8[#n]", "the size of shared buffer 'staged0', #n, is not known"),
        ("copy u8[16 x 32] staged0[0;", "copy u8[16 x 8] staged0[0;", "8 of u8 are not moved by 16 bytes"),
        ("from a[0; 32]", "from a[0]", "0 slot strides for the 1 slot dimensions"),
        ("store z[0; 32, 32 | 1] = r", "store staged0[0 | 1] = x9", "buffer 'staged0' is 'shared', not writable"),
    ],
)
def test_what_is_no_copy(old: str, new: str, said: str) -> None:
    text = str(staged(parse(BYTES)))
    assert text.count(old) == 1
    if "x9" in new:
        new = f"x9 = load u8[x 32] a[0 | 1]\n{new}"
    with pytest.raises(InvalidTile, match=said):
        verify(parse(text.replace(old, new)))


# --- instructions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", GPU_TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_instructions_are_in_the_ptx(kind: str, target: str) -> None:
    kernel = ptx_kernel("k", staged(product(kind, 16, 1)), GPU_TARGETS[target])
    assert len(re.findall(r"\.shared \.align 16 \.b8 staged\d", kernel.ptx)) == 2
    assert set(re.findall(r"cp\.async[\w.]*", kernel.ptx)) == {
        "cp.async.cg.shared.global",
        "cp.async.commit_group",
        "cp.async.wait_group",
    }
    assert re.search(r"cp\.async\.wait_group\s+1;\s*bar\.warp\.sync", kernel.ptx), "others' copies are seen after both"
    assert set(re.findall(r"ld\.shared\S*", kernel.ptx)) == {"ld.shared.b32"}, "words, as the instruction takes them"
    assert "cvta" not in kernel.ptx.replace("cvta.to.global", ""), "shared memory is not reached by generic addresses"
    assert not re.search(r"ld\.global\S*\.[bu](8|16)\b", kernel.ptx)
    assert (kernel.usage is None) == (shutil.which("ptxas") is None)
    assert kernel.usage is None or kernel.usage.spilled_stores == 0


@pytest.mark.parametrize(("terms", "both"), [(64, True), (66, False)])
def test_layers_stage_their_operands(terms: int, both: bool) -> None:
    """Packed columns in any case; rows where each begins at a multiple of 16 bytes, else they are loaded as words or as elements."""
    (program,) = (p for p in tiles(layer("m", terms, 64, "Z[m, n:64]: f32 = Y[m, n]")) if "dot" in str(p))
    sources = {c.source for c in copies(program)}
    assert len(sources) == 1 + both and "matdot" in str(program)
    for rows in (3, 37):
        compare(program, {s.lstrip("#"): rows for s in program.symbols})
