"""Layouts of a tile program's registers: what follows from which demands, by enumeration, and what an error shows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from dlc.codegen import tile
from dlc.codegen.layout_inference import Demand, LayoutConflict, SplitElement, infer
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_verify import InvalidTile, tile_types
from dlc.ir.layout import Layout, LayoutMismatch, local, replicated, spatial

WAYS = {  # layouts of n lanes for 4 threads
    "rows": lambda n: spatial(4) @ local(n // 4),
    "columns": lambda n: local(n // 4) @ spatial(4),
    "pairs": lambda n: local(n // 8) @ spatial(4) @ local(2),
    "held": lambda n: replicated(1, 4) @ local(n),
    "half": lambda n: replicated(1, 2) @ spatial(2) @ local(n // 2),
}


def program(body: str) -> TileProgram:
    return parse(f"tile k(in b: u8[256], in a: f32[256], out z: f32[256], out o: u8[256],) task t in 1 {{\n{body}\n}}")


def demand(name: str, way: str, lanes: int) -> Demand:
    return Demand(name, WAYS[way](lanes), f"as '{way}' has it")


CHAINS = {
    "forwards": ("x = load u8[x 64] b[0 | 1]\n y = view<i32>(x)\n w = cast<f32, sat>(y)\n store z[0 | 1] = w", ("x", "rows", 64), {"x", "y", "w"}),
    "backwards": ("x = load u8[x 64] b[0 | 1]\n y = view<i32>(x)\n w = cast<f32, sat>(y)\n store z[0 | 1] = w", ("w", "columns", 16), {"x", "y", "w"}),
    "both ways round a reduction over lanes": (
        "x = load f32[x 16] a[0 | 1]\n y = add(x, x)\n s = reduce add lanes y\n w = mul(y, s)\n v = load f32[x 16] a[16 | 1]\n"
        " u = reduce add lanes v\n store z[0 | 1] = w", ("y", "pairs", 16), {"x", "y", "w"},
    ),
    "a reduction over slots, a slot, a stack": (
        "x = load f32[2 x 16] a[0; 16 | 1]\n s = reduce add slot 0 x\n y = slice x[1]\n w = stack(y, y)\n store z[0; 16 | 1] = w",
        ("s", "half", 16), {"x", "s", "y", "w"},
    ),
    "a dot product": (
        "x = load u8[x 64] b[0 | 1]\n y = view<i32>(x)\n c = const i32[x 16] 0\n d = dot<u8, i8>(y, y, c)\n v = cast<f32, sat>(d)\n"
        " store z[0 | 1] = v", ("v", "rows", 16), {"x", "y", "c", "d", "v"},
    ),
    "a loop": (
        "c = load f32[x 16] a[0 | 1]\n (r) = for j in 0 .. 3 step 1 carry (i = c) {\n d = add(i, i)\n yield (d)\n }\n"
        " m = mask 16 below 9\n store z[0 | 1] = r mask m", ("m", "columns", 16), {"c", "i", "d", "r", "m"},
    ),
    "a branch": (
        "x = load f32[x 16] a[0 | 1]\n (r) = if t < 1 {\n y = add(x, x)\n yield (y)\n } else {\n yield (x)\n }\n store z[0 | 1] = r",
        ("r", "pairs", 16), {"x", "y", "r"},
    ),
    "bytes zipped": (
        "x = load u8[x 64] b[0 | 1]\n y = load u8[x 64] b[64 | 1]\n w = zip x y half 1\n v = cast<f32, sat>(w)\n store z[0 | 1] = v",
        ("w", "columns", 16), {"x", "y", "w", "v"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_reaches(name: str) -> None:
    """All that is taken together with the tile, and nothing else; bytes of words that lie so lie as their words' parts."""
    body, (at, way, lanes), reached = CHAINS[name]
    types = tile_types(made := program(body))
    found = infer(made, [demand(at, way, lanes)])
    assert found.keys() == reached
    for tile_name, layout in found.items():
        words = WAYS[way](lanes) if types[at].lanes == lanes else None
        assert words is not None and layout.shape == (types[tile_name].lanes,)
        scale = types[tile_name].lanes / lanes
        want = words if scale == 1 else words @ local(4) if scale == 4 else WAYS[way](types[tile_name].lanes)
        assert layout.same(want)


def test_what_no_demand_reaches_is_filled() -> None:
    body = "x = load f32[x 16] a[0 | 1]\n y = load f32[x 16] a[16 | 1]\n w = neg(y)\n store z[0 | 1] = x\n store z[16 | 1] = w"
    asked: list[str] = []

    def fill(name: str, type_: tile.TileType) -> Demand:
        asked.append(name)
        return demand(name, "rows", type_.lanes)

    found = infer(program(body), [demand("x", "held", 16)], fill)
    assert asked == ["y"] and found["x"].same(WAYS["held"](16)) and found["w"].same(WAYS["rows"](16))


# --- against enumeration --------------------------------------------------------------------------------------------

Places = frozenset[tuple[int, int, int]]


def bits_of(layout: Layout, bits: int) -> Places:
    """(thread, bit of its slots, bit of the register) of all that a thread holds."""
    return frozenset((t, i * bits + n, lane * bits + n) for (t, i), (lane,) in layout.elements() for n in range(bits))


def lanes_of(places: Places, bits: int) -> Places | None:
    """(thread, slot, lane) where these bits are whole elements; None where one is split or out of order."""
    whole = frozenset((t, at // bits, bit // bits) for t, at, bit in places if at % bits == bit % bits)
    back = frozenset((t, i * bits + n, lane * bits + n) for t, i, lane in whole for n in range(bits))
    return whole if back == places else None


def expected(made: TileProgram, demands: list[Demand]) -> dict[str, Places] | None:
    """The maps that the demands force upon the tiles, statement by statement until nothing changes; None where there are none."""
    types = tile_types(made)
    found: dict[str, Places] = {}
    for d in demands:
        lanes = frozenset((t, i, lane) for (t, i), (lane,) in d.layout.elements())
        if found.setdefault(d.tile, lanes) != lanes:
            return None
    changed = True
    while changed:
        changed = False
        for s in made.body:
            for a, b, by_bits in pairs(s):
                if a not in found:
                    continue
                result: Places | None = found[a]
                if by_bits:
                    wide, narrow = types[a].dtype.bits, types[b].dtype.bits
                    result = lanes_of(frozenset((t, i * wide + n, x * wide + n) for t, i, x in found[a] for n in range(wide)), narrow)
                if result is None or found.get(b, result) != result:
                    return None
                changed |= b not in found
                found[b] = result
    return found


def pairs(s: Any) -> Iterator[tuple[str, str, bool]]:
    match s:
        case tile.Op():
            yield from ((a, b, False) for a, b in itertools.permutations({s.dst, *s.args}, 2))
        case tile.Cast() | tile.Bitcast():
            yield from ((s.dst, s.src, False), (s.src, s.dst, False))
        case tile.View():
            yield from ((s.dst, s.src, True), (s.src, s.dst, True))
        case tile.Store():
            pass


def random_program(rng: random.Random) -> TileProgram:
    """Loads, views to and fro between bytes, pairs and words, casts, and sums of what has one type."""
    types: dict[str, tuple[str, int]] = {}
    lines = []
    for n in range(rng.randint(2, 9)):
        name = f"x{n}"
        choices = [x for x, t in types.items() if t[0] != "f32"]
        kind = rng.choice(["load", "view", "view", "add", "cast"]) if choices else "load"
        if kind == "load":
            types[name] = ("u8", 32)
            lines.append(f"{name} = load u8[x 32] b[0 | 1]")
            continue
        source = rng.choice(choices)
        dtype, lanes = types[source]
        if kind == "view":
            wanted = rng.choice(["u8", "u16", "u32"])
            types[name] = (wanted, lanes * int(dtype[1:]) // int(wanted[1:]))
            lines.append(f"{name} = view<{wanted}>({source})")
        elif kind == "cast":
            wanted = rng.choice(["u8", "u16", "u32"])
            types[name] = (wanted, lanes)
            lines.append(f"{name} = cast<{wanted}, sat>({source})")
        else:
            other = rng.choice([x for x in choices if types[x] == types[source]])
            types[name] = types[source]
            lines.append(f"{name} = add({source}, {other})")
    return program("\n".join(lines))


def test_random_programs_have_the_layouts_that_enumeration_says() -> None:
    """The same maps, or a conflict where no maps agree; both come up often."""
    rng, conflicts, splits, longest = random.Random(0), 0, 0, 0
    for _ in range(1500):
        made = random_program(rng)
        types = {n: t for n, t in tile_types(made).items() if t.lanes >= 8}
        demands = [demand(n, rng.choice([*WAYS]), types[n].lanes) for n in rng.sample([*types], min(len(types), rng.randint(1, 2)))]
        want = expected(made, demands)
        try:
            found = infer(made, demands)
        except (LayoutConflict, SplitElement) as error:
            assert want is None, (str(made), demands)
            conflicts += isinstance(error, LayoutConflict)
            splits += isinstance(error, SplitElement)
            continue
        assert want is not None, (str(made), demands)
        assert {n: frozenset((t, i, lane) for (t, i), (lane,) in x.elements()) for n, x in found.items()} == want
        longest = max(longest, len(found))
    assert conflicts > 100 and splits > 100 and longest > 5


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_conflict_shows_both_layouts_and_both_ways() -> None:
    body = "x = load u8[x 64] b[0 | 1]\n y = view<i32>(x)\n w = cast<f32, sat>(y)\n v = neg(w)\n store z[0 | 1] = v"
    with pytest.raises(LayoutConflict) as caught:
        infer(program(body), [demand("x", "rows", 64), demand("v", "columns", 16)])
    error = caught.value
    assert error.message == (
        "tile 'v', f32[x 16], is to lie as [16]/[4, 4]/[1]/[0], as 'columns' has it ('v'), "
        "and lies as [16]/[4, 4]/[0]/[1], as 'rows' has it ('x'), through line 10, `v = neg(w)`"
    )


def test_a_conflict_stands_at_the_statement_where_it_comes_up() -> None:
    body = "x = load f32[x 16] a[0 | 1]\n y = load f32[x 16] a[16 | 1]\n w = add(x, y)\n store z[0 | 1] = w"
    with pytest.raises(LayoutConflict, match="through line 9") as caught:
        infer(program(body), [demand("x", "rows", 16), demand("y", "held", 16)])
    assert "tile 'y'" in caught.value.message
    assert str(caught.value.loc) == "k.tile:9:3" and caught.value.source == "  w = add(x, y)"
    third = body + "\n q = load f32[x 16] a[32 | 1]\n p = max(q, w)\n store z[0 | 1] = p"
    with pytest.raises(LayoutConflict) as caught:
        infer(program(third), [demand("x", "rows", 16), demand("q", "held", 16)])
    assert str(caught.value.loc) == "k.tile:12:3" and "tile 'q'" in caught.value.message and "`p = max(q, w)`" in caught.value.message


def test_an_element_is_not_split_between_threads() -> None:
    body = "x = load u8[x 64] b[0 | 1]\n y = view<i32>(x)\n w = cast<f32, sat>(y)\n store z[0 | 1] = w"
    with pytest.raises(SplitElement) as caught:
        infer(program(body), [demand("x", "pairs", 64)])
    assert caught.value.message == (
        "elements of tile 'y', i32[x 16], would be split between threads: 'x' has their bits, and lies as "
        "[64]/[8, 4, 2]/[1]/[0, 2], as 'pairs' has it ('x')"
    )
    assert str(caught.value.loc) == "k.tile:8:3"


@pytest.mark.parametrize(("first", "second"), [("f32[x 16]", "f32[x 64]"), ("f32", "f32[x 64]"), ("f32[x 64]", "f32[2 x 64]")])
def test_a_name_has_one_type_in_all_regions(first: str, second: str) -> None:
    """What follows for the one `x` says nothing of the other, and went by its width."""
    regions = (f" x = load {of} a[0{'; 64' * of.count('2 ')} | 1]\n y = neg(x)\n store z[0 | 1] = x\n" for of in (first, second))
    body = "if t < 1 {\n" + "} else {\n".join(regions) + "}"
    with pytest.raises(InvalidTile, match="'x' is .* in another region and .* here") as caught:
        infer(program(body), [])
    assert caught.value.source is not None and caught.value.source.lstrip().startswith(f"x = load {second} ")


@pytest.mark.parametrize(("name", "lanes", "said"), [("x", 32, r"none of tile 'x', f32\[x 16\]"), ("s", 16, "none of tile 's'"), ("q", 16, "none of tile 'q'")])
def test_a_demand_is_about_the_lanes_of_a_tile(name: str, lanes: int, said: str) -> None:
    body = "x = load f32[x 16] a[0 | 1]\n s = reduce add lanes x\n store z[0 | 1] = x"
    with pytest.raises(LayoutMismatch, match=said):
        infer(program(body), [demand(name, "rows", lanes)])
