"""The layout algebra against its definition, enumerated, and the cases that Tilus states."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.layout import (
    Layout,
    LayoutMismatch,
    Selection,
    column_local,
    column_spatial,
    local,
    replicated,
    spatial,
    views,
)

Map = dict[tuple[int, int], tuple[int, ...]]


def as_map(layout: Layout) -> Map:
    return dict(layout.elements())


def multiplied(f: Layout, g: Layout) -> Map:
    """h(t, i) = f(t // Tg, i // Ng) * Sg + g(t % Tg, i % Ng): the paper's formula, point by point."""
    return {
        (t, i): tuple(
            a * s + b
            for a, s, b in zip(f.index(t // g.threads, i // g.slots), g.shape, g.index(t % g.threads, i % g.slots), strict=True)
        )
        for t in range(f.threads * g.threads)
        for i in range(f.slots * g.slots)
    }


ATOMS = (local, spatial, column_local, column_spatial)


@st.composite
def layouts(draw: st.DrawFn, rank: int = 2, most: int = 3) -> Layout:
    """Products of a few atoms and copies."""
    found = Layout((1,) * rank, ())
    for _ in range(draw(st.integers(0, most))):
        if draw(st.integers(0, 5)) == 0:
            found = found @ replicated(rank, draw(st.integers(1, 3)))
        else:
            found = found @ draw(st.sampled_from(ATOMS))(*(draw(st.integers(1, 3)) for _ in range(rank)))
    return found


@pytest.mark.parametrize(
    ("layout", "threads", "slots", "index"),
    [
        (local(2, 3), 1, 6, lambda t, i: (i // 3, i % 3)),
        (spatial(2, 3), 6, 1, lambda t, i: (t // 3, t % 3)),
        (column_local(2, 3), 1, 6, lambda t, i: (i % 2, i // 2)),
        (column_spatial(2, 3), 6, 1, lambda t, i: (t % 2, t // 2)),
        (replicated(2, 4), 4, 1, lambda t, i: (0, 0)),
    ],
)
def test_atoms(layout: Layout, threads: int, slots: int, index) -> None:  # type: ignore[no-untyped-def]
    assert (layout.threads, layout.slots) == (threads, slots)
    assert as_map(layout) == {(t, i): index(t, i) for t in range(threads) for i in range(slots)}


@settings(max_examples=200, deadline=None)
@given(layouts(), layouts())
def test_a_product_is_the_formula(f: Layout, g: Layout) -> None:
    h = f @ g
    assert h.shape == tuple(a * b for a, b in zip(f.shape, g.shape, strict=True))
    assert as_map(h) == multiplied(f, g)


@settings(max_examples=100, deadline=None)
@given(layouts(most=2), layouts(most=2), layouts(most=2))
def test_products_associate(f: Layout, g: Layout, h: Layout) -> None:
    assert ((f @ g) @ h).same(f @ (g @ h))


def test_products_do_not_commute() -> None:
    assert not (local(2, 1) @ spatial(2, 2)).same(spatial(2, 2) @ local(2, 1))


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts())
def test_equal_maps_have_one_canonical_form(f: Layout, g: Layout) -> None:
    """`same` is equality of maps, of shapes and numbers of threads; the form itself is the same map, and its own form."""
    equal = f.shape == g.shape and (f.threads, f.slots) == (g.threads, g.slots) and as_map(f) == as_map(g)
    assert f.same(g) == equal
    canonical = f.canonical()
    assert as_map(canonical) == as_map(f)
    assert canonical.canonical() == canonical
    assert 1 not in canonical.modes


SMALL = [f(*e) for f in ATOMS for e in itertools.product((1, 2, 3), repeat=2)]


def test_every_small_pair_of_products() -> None:
    """All pairs of products of two atoms over 2 and 4: equal as maps exactly when their forms are."""
    few = [a @ b for a in (local(2, 1), spatial(1, 2), column_local(2, 2), spatial(2, 2)) for b in SMALL if max(b.shape) <= 2]
    forms = {layout: (layout.shape, layout.threads, tuple(sorted(as_map(layout).items()))) for layout in few}
    for a, b in itertools.product(few, repeat=2):
        assert a.same(b) == (forms[a] == forms[b]), (a, b)


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts())
def test_division_undoes_a_product(f: Layout, g: Layout) -> None:
    h = f @ g
    assert ((h / g) @ g).same(h)
    assert (f @ h.left_divide(f)).same(h)


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts(most=2))
def test_a_quotient_is_one_or_is_refused(h: Layout, g: Layout) -> None:
    """What is given back multiplies to the dividend; what is refused has no quotient among small layouts."""
    for divide, back in (
        (lambda: h / g, lambda q: q @ g),
        (lambda: h.left_divide(g), lambda q: g @ q),
    ):
        try:
            quotient = divide()
        except LayoutMismatch:
            assert not any(back(q).same(h) for q in CANDIDATES if len(q.shape) == len(h.shape))
            continue
        assert back(quotient).same(h)


CANDIDATES = [
    *SMALL,
    *(a @ b for a in SMALL for b in SMALL if max(a.shape) <= 2 and max(b.shape) <= 2),
    *(a @ replicated(2, n) for a in SMALL for n in (2, 3)),
]


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(0, 3))
def test_a_reshape_keeps_the_elements(f: Layout, which: int) -> None:
    size = math.prod(f.shape)
    shapes = [(size,), (1, size), (f.shape[0], f.shape[1], 1), (size, 1, 1)]
    try:
        g = f.reshape(*shapes[which])
    except LayoutMismatch:
        return
    assert (g.threads, g.slots) == (f.threads, f.slots)
    for key, index in f.elements():
        assert flat(index, f.shape) == flat(g.index(*key), shapes[which])


def flat(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    found = 0
    for i, n in zip(index, shape, strict=True):
        found = found * n + i
    return found


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_modes_of_a_merged_dimension_can_always_be_taken_apart(f: Layout) -> None:
    """To one dimension and back."""
    assert f.reshape(math.prod(f.shape)).reshape(*f.shape).same(f)


# --- the paper's cases -----------------------------------------------------------------------------------------------


def test_the_unified_form_of_a_product() -> None:
    h = spatial(2, 4) @ local(2, 1)
    assert h.canonical() == Layout((4, 4), (2, 2, 4), (0, 2), (1,))


def test_the_operand_of_mma_m16n8k8() -> None:
    a = local(2, 1).over_threads(8, 4).over_slots(1, 2)
    assert (a.shape, a.threads, a.slots) == ((16, 8), 32, 4)
    assert a.index(5, 3) == (8 + 5 // 4, 5 % 4 * 2 + 1)


@pytest.mark.parametrize(
    ("whole", "part", "quotient"),
    [
        (spatial(2, 4), spatial(1, 2), spatial(2, 2)),
        (spatial(32, 1).over_slots(1, 32), spatial(32, 1), local(1, 32)),
        (spatial(6), spatial(3), spatial(2)),
        (spatial(2, 12), spatial(1, 3), spatial(2, 4)),
        (spatial(2, 12).over_slots(2, 3), local(2, 3), spatial(2, 12)),
    ],
)
def test_division(whole: Layout, part: Layout, quotient: Layout) -> None:
    assert (whole / part).same(quotient)


@pytest.mark.parametrize(
    ("whole", "part", "quotient"),
    [
        (spatial(2, 4), spatial(2, 1), spatial(1, 4)),
        (local(2, 1).over_threads(2, 4), local(2, 1), spatial(2, 4)),
        (spatial(2, 12).over_slots(2, 3), spatial(2, 1).over_slots(2, 1), spatial(1, 12).over_slots(1, 3)),
    ],
)
def test_division_from_the_left(whole: Layout, part: Layout, quotient: Layout) -> None:
    assert whole.left_divide(part).same(quotient)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Layout((6,), (2, 3), (0, 1)), Layout((6,), (6,), (0,))),
        (Layout((6,), (2, 3), (1, 0)), Layout((6,), (2, 3), (1, 0))),
        (
            Layout((4, 5, 6, 5), (2, 2, 5, 2, 3, 5), (2, 0, 1), (3, 4, 5)),
            Layout((4, 5, 6, 5), (4, 5, 6, 5), (1, 0), (2, 3)),
        ),
    ],
)
def test_canonical(before: Layout, after: Layout) -> None:
    assert before.canonical() == after


def test_reshape() -> None:
    assert spatial(2, 4).reshape(2, 2, 2).same(spatial(2, 2, 2))
    with pytest.raises(LayoutMismatch, match="lies across dimensions"):
        Layout((2, 3), (2, 3), (1, 0)).reshape(3, 2)
    with pytest.raises(LayoutMismatch, match="has no 7 elements"):
        spatial(2, 3).reshape(7)


def test_functions_of_several_values() -> None:
    first, second = Selection((2, 3, 4), (2, 3, 4), (0, 2)), Selection((8,), (2, 2, 2), (0, -5, 2))
    both = first.then(second)
    assert both == Selection((2, 3, 4), (2, 3, 2, 2), (0, -5, 3))
    for index in itertools.product(range(2), range(3), range(4)):
        (number,) = first.numbers(index)
        assert both.numbers(index) == second.numbers((number,))
    with pytest.raises(LayoutMismatch, match="gives no index"):
        first.then(Selection((9,), (9,), (0,)))


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_keep_the_bits() -> None:
    """Bytes of 64 lanes as words of 16; 40 bytes of a register as 64 codes of 5 bits; not the same bits, no view."""
    assert views(spatial(64), 8, spatial(16), 32)
    assert views(spatial(40), 8, spatial(64), 5)
    assert views(spatial(32).over_slots(6), 8, spatial(32).over_slots(8), 6)
    assert not views(spatial(64), 8, spatial(16), 16)
    assert not views(spatial(64).over_slots(2), 8, spatial(32).over_slots(2), 32)


@pytest.mark.parametrize(("lanes", "vectors", "together"), [(16, 4, 2), (16, 2, 4), (8, 2, 1), (4, 2, 8)])
def test_packed_weights_lie_in_the_order_of_the_registers(lanes: int, vectors: int, together: int) -> None:
    """The stream of `coded-products` is this layout, registers outside, then lanes, then what a lane holds."""
    terms = 4 * together
    order = local(vectors, 1) @ spatial(lanes, 1) @ column_local(1, 1) @ Layout((1, terms), (together, 4), (), (1, 0))
    assert views(spatial(lanes * 4 * together), 8 // together, spatial(lanes * 4), 8)
    stream = [
        order.index(lane, vector * terms + slot) for vector in range(vectors) for lane in range(lanes) for slot in range(terms)
    ]
    expected = [
        (vector * lanes + lane, turn * 4 + part)
        for vector, lane, part, turn in itertools.product(range(vectors), range(lanes), range(4), range(together))
    ]
    assert stream == expected


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Layout((4,), (2, 2), (0,)), "does not use each mode once"),
        (lambda: Layout((4,), (2, 3), (0, 1)), "do not split its shape"),
        (lambda: Layout((), (2,), (0,)), "do not split its shape"),
        (lambda: spatial(2) @ spatial(2, 2), "differ in rank"),
        (lambda: spatial(2, 4) / local(1, 2), "is no right factor of"),
        (lambda: spatial(2, 4).left_divide(spatial(3, 1)), "is no left factor of"),
    ],
)
def test_what_is_refused(make, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LayoutMismatch, match=reason):
        make()


@pytest.mark.parametrize("layout", [local(2, 1) @ spatial(8, 4) @ local(1, 2), column_local(2, 3) @ spatial(4, 2), replicated(2, 3) @ spatial(2, 2) @ local(3, 1)])
def test_modes_of_dimensions_say_where_elements_lie(layout: Layout) -> None:
    """Digits of the thread's number, times their steps, are the first element of each thread."""
    for thread in range(layout.threads):
        begin = tuple(
            sum(thread // m.threads % m.extent * m.step for m in modes if m.threads is not None) for modes in layout.dimensions()
        )
        assert begin == layout.index(thread, 0)
    extents = [[m.extent for m in modes] for modes in layout.dimensions()]
    assert tuple(math.prod(e) for e in extents) == layout.shape and sum(extents, []) == list(layout.modes)
