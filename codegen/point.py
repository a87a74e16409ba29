"""Scalar expressions onto register tiles: the value of an Einsum's right side at a tile of points.

A `Space` says which points a tile holds: lanes run along one rank, slots along others, and every other rank has one index.
`Emitter.value` turns an `ein` expression into tiles of that shape (or a broadcastable smaller one): an access becomes a
broadcast, a contiguous, a strided or a gathered load, by the slope of its flat address along the lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dlc.codegen.quotient import converted, dequantised
from dlc.codegen.tile import TileType
from dlc.codegen.tile_build import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, I16, I64, DType
from dlc.ir.einsum import TensorType
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise, dtype_of
from dlc.ir.extent import (
    Atom,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Value,
    Var,
    atoms,
    has_value,
    int_expr,
    rebuild,
    show_extent,
    split_linear,
    substitute,
    var,
    variables,
)
from dlc.ir.facts import Facts


def compute_type(dtype: DType) -> DType:
    """The type arithmetic on `dtype` is done in: f32 for the 16-bit floats, itself otherwise."""
    return F32 if dtype in (F16, BF16) else dtype


def _rounded(value: float | int | bool, dtype: DType) -> float | int | bool:
    """A constant in the compute type: a 16-bit float constant has 16 bits there too."""
    return float(np.asarray(value).astype(dtype.numpy)) if dtype in (F16, BF16) else value


@dataclass(frozen=True)
class Slot:
    """A slot dimension of the tile: `count` registers, `step` indices of `rank` apart."""

    rank: str
    count: int
    step: int


@dataclass(frozen=True)
class Space:
    """The points of a tile.

    Attributes:
        base: index of every rank at slot 0, lane 0, over loop variables and symbols.
        vector: the rank the lanes run along, or None (scalars).
        lanes: number of lanes (1 when there is no vector rank).
        slots: slot dimensions, outermost first.
        mask: tile of the points that exist, or None when all do.
    """

    base: Mapping[str, IntExpr]
    vector: str | None = None
    lanes: int = 1
    slots: tuple[Slot, ...] = ()
    mask: str | None = None

    @property
    def moving(self) -> frozenset[str]:
        """Ranks that vary inside the tile."""
        names = {s.rank for s in self.slots if s.count > 1}
        return frozenset(names | ({self.vector} if self.vector is not None and self.lanes > 1 else set()))

    def tile(self, dtype: DType) -> TileType:
        return TileType(dtype, tuple(s.count for s in self.slots), self.lanes)

    def at(self, rank: str, index: IntExpr) -> Space:
        return replace(self, base={**self.base, rank: index})


@dataclass
class Storage:
    """Where a tensor lives for the kernel being lowered: a buffer and the element offset of an index.

    Attributes:
        before: elements of the tensor that come before those that the buffer holds.
    """

    buffer: str
    type: TensorType
    strides: tuple[IntExpr, ...]
    before: IntExpr = int_expr(0)  # noqa: RUF009 (a frozen value)

    def offset(self, index: tuple[IntExpr, ...]) -> IntExpr:
        total = -self.before
        for i, s in zip(index, self.strides, strict=True):
            total = total + i * s
        return total


@dataclass
class Emitter:
    """Emits tiles for expressions into `b`.

    Attributes:
        storage: tensors in memory.
        tiles: tensors of the current points held in registers, with the index they were computed at.
        streaming: whether whole vectors are stored past the caches.
        fused: whether a multiply-add rounds once.
        assumed: pairs (index, extent), simplified, that are known to be within: what loop bounds and branches settle.
    """

    b: Builder
    facts: Facts
    storage: Mapping[str, Storage]
    tiles: dict[str, tuple[tuple[IntExpr, ...], str]] = field(default_factory=dict)
    dtypes: dict[str, DType] = field(default_factory=dict)
    memo: dict[object, str] = field(default_factory=dict)
    assumed: frozenset[tuple[IntExpr, IntExpr]] = frozenset()
    streaming: bool = False
    fused: bool = False

    def scoped(self) -> Emitter:
        """An emitter for a nested region: knows the tiles in scope, and keeps what it computes to itself."""
        tiles, memo = dict(self.tiles), dict(self.memo)
        return Emitter(self.b, self.facts, self.storage, tiles, self.dtypes, memo, self.assumed, self.streaming, self.fused)

    def assuming(self, pairs: Iterable[tuple[IntExpr, IntExpr]]) -> Emitter:
        """As `scoped`, where the indices of `pairs` are within their extents."""
        inner = self.scoped()
        inner.assumed = self.assumed | set(pairs)
        inner.memo = {}  # what was guarded is not any more
        return inner

    def dtype(self, tensor: str) -> DType:
        return self.storage[tensor].type.dtype if tensor in self.storage else self.dtypes[tensor]

    # --- values ---

    def value(self, e: Expr, space: Space, mask: str | None = None) -> str:
        """The tile of `e` at the points of `space`; memory is read only where `mask` (and the space's own) holds."""
        key = (e, space.vector, space.lanes, space.slots, _base_key(space, e.variables), mask)
        if key not in self.memo:
            self.memo[key] = self._value(e, space, mask)
        return self.memo[key]

    def _value(self, e: Expr, space: Space, mask: str | None) -> str:
        b = self.b
        match e:
            case Const(value, dtype):
                return b.const(TileType(compute_type(dtype)), _rounded(value, dtype))
            case Index(expr):
                return self.index(expr, space, mask)
            case Access():
                return self._access(e, space, mask)
            case Apply("nextafter", (x, y)) if dtype_of(e, self.dtype) in (F16, BF16):
                return self._next_small(dtype_of(e, self.dtype), self.value(x, space, mask), self.value(y, space, mask))
            case Apply("le" | "lt" | "ge" | "gt" as op, (Index(x), Index(y))) if (found := self._lane_mask(op, x, y, space)):
                return found
            case Apply(op, args):
                return b.op(op, *(self.value(a, space, mask) for a in args))
            case Cast(dtype, arg, mode):
                if dtype.is_int:
                    return converted(self, arg, dtype, mode, space, mask)
                if (found := dequantised(self, e, space, mask)) is not None:
                    return found
                narrow = dtype in (F16, BF16)
                done = b.cast(self.value(arg, space, mask), dtype, mode)
                return b.cast(done, F32) if narrow else done
            case Bitcast(dtype, arg):
                source_type = dtype_of(arg, self.dtype)
                source = self.value(arg, space, mask)
                bits = b.bitcast(b.cast(source, source_type), dtype)
                return b.cast(bits, compute_type(dtype))
            case Piecewise(cases, otherwise):
                return self._piecewise(cases, otherwise, space, mask)

    def _next_small(self, dtype: DType, x: str, y: str) -> str:
        """The neighbour of `x` towards `y` among the 16-bit floats, on their bits; both tiles are f32."""
        b = self.b
        small = [b.cast(v, dtype) for v in (x, y)]  # an operand just computed has more bits
        bits, towards = (b.bitcast(v, I16) for v in small)
        x, y = (b.cast(v, F32) for v in small)
        up, negative = b.op("gt", y, x), b.op("lt", bits, b.const(I16, 0))
        # away from zero is +1 on the bits, whatever the sign
        step = b.op("select", b.op("xor", up, negative), b.const(I16, 1), b.const(I16, -1))
        least = b.op("or", b.op("and", towards, b.const(I16, I16.lowest)), b.const(I16, 1))
        moved = b.op("select", b.op("eq", x, b.const(F32, 0.0)), least, b.op("add", bits, step))
        moved = b.op("select", b.op("eq", x, y), towards, moved)
        strange = b.op("or", b.op("ne", x, x), b.op("ne", y, y))
        return b.op("select", strange, b.op("add", x, y), b.cast(b.bitcast(moved, dtype), F32))

    def _piecewise(self, cases: tuple[tuple[Expr, Expr], ...], otherwise: Expr, space: Space, mask: str | None) -> str:
        left: str | None = None  # points no earlier guard took
        picked: list[tuple[str, str]] = []
        for guard, value in cases:
            g = self.value(guard, space, self._and(mask, left))
            here = self._and(g, left)
            picked.append((g, self.value(value, space, self._and(mask, here))))
            left = self._and(self.b.op("not", g), left)
        result = self.value(otherwise, space, self._and(mask, left))
        for g, v in reversed(picked):
            result = self.b.op("select", g, v, result)
        return result

    def _and(self, a: str | None, c: str | None) -> str | None:
        if a is None or c is None or a == c:
            return a if c is None else c
        key = ("and", a, c)
        if key not in self.memo:
            self.memo[key] = self.b.op("and", a, c)
        return self.memo[key]

    # --- memory ---

    def _access(self, e: Access, space: Space, mask: str | None) -> str:
        held = self.tiles.get(e.tensor)
        # What has no memory is read at its own point only, in whatever form merging and splitting left the index.
        own = held is not None and e.tensor not in self.storage
        if held is not None and (own or held[0] == tuple(self.facts.simplify(i) for i in e.index)):
            return held[1]
        store = self.storage[e.tensor]
        active = self._and(space.mask, mask)
        guard, checked = self._bounds(e, store, space, mask)
        if guard is not None and e.default is None:
            assert checked
            outside = self.b.op("not", guard) if active is None else self.b.op("and", active, self.b.op("not", guard))
            self.b.check(self.b.op("not", outside), out_of_range(store.type))
        raw_mask = self._and(active, guard)
        dtype = store.type.dtype
        raw = self._load(store, e.index, space, raw_mask, mask)
        result = self.b.cast(raw, compute_type(dtype))
        if e.default is not None and guard is not None:
            default = self.value(e.default, space, mask)
            result = self.b.op("select", guard, result, default)
        return result

    def _bounds(self, e: Access, store: Storage, space: Space, mask: str | None) -> tuple[str | None, bool]:
        """The tile of points where `e` is inside its tensor (None: always), and whether a gather needs the check."""
        return self.inside(e.index, store.type.shape, space, mask, trust_plain=e.default is None)

    def inside(
        self,
        index: tuple[IntExpr, ...],
        shape: tuple[IntExpr, ...],
        space: Space,
        mask: str | None,
        *,
        trust_plain: bool,
    ) -> tuple[str | None, bool]:
        """The tile of points where `index` is within `shape` (None: always), and whether an index is gathered.

        With `trust_plain`, indices that read no tensor are taken as proven (the verifier did).
        """
        guard: str | None = None
        checked = False
        for i, extent in zip(index, shape, strict=True):
            gathered = has_value(i)
            if trust_plain and not gathered:
                continue
            inner = self.facts.simplify(i)
            if not gathered and ((inner, extent) in self.assumed or self.facts.within(inner, extent)):
                continue
            checked = checked or gathered
            if gathered or not (self.facts.nonneg(inner) or self._always("ge", inner, space)):
                guard = self._and(self._compare("ge", inner, int_expr(0), space, mask), guard)
            if gathered or not (self.facts.less(inner, extent) or self._always("lt", inner - extent, space)):
                guard = self._and(self._compare("lt", inner, extent, space, mask), guard)
        return guard, checked

    def _compare(self, op: str, left: IntExpr, right: IntExpr, space: Space, mask: str | None) -> str:
        names = variables(left) | variables(right)
        key = ("cmp", op, left, right, space.vector, space.lanes, space.slots, _base_key(space, names), mask)
        if key not in self.memo:
            known = self._decided(op, left - right, space)
            self.memo[key] = known or self.b.op(op, self.index(left, space, mask), self.index(right, space, mask))
        return self.memo[key]

    def _lane_mask(self, op: str, x: IntExpr, y: IntExpr, space: Space) -> str | None:
        """The tile of `x op y` where the lanes are on up to one of them or from one on, which is a mask of so many lanes."""
        difference = y - x if op in ("le", "lt") else x - y
        difference = difference - (1 if op in ("lt", "gt") else 0)  # it holds where this is not negative
        parts = affine_parts(difference, space) if not has_value(difference) and space.lanes > 1 else None
        if parts is None or parts[1].const not in (1, -1):
            return None
        start, falls = parts[0], parts[1].const == -1

        def level(slot: tuple[int, ...]) -> str:
            if len(slot) == len(space.slots):
                here = start
                for k, slope in zip(slot, parts[2], strict=True):
                    here = here + slope * k
                lanes = self.b.mask(space.lanes, here + 1 if falls else -here)
                return lanes if falls else self.b.op("not", lanes)
            moves = parts[2][len(slot)].const != 0
            return self.b.stack(*(level((*slot, k)) for k in range(space.slots[len(slot)].count if moves else 1)))

        return level(())

    def _always(self, op: str, difference: IntExpr, space: Space) -> bool:
        """Whether `difference op 0` is a known truth in every slot of the tile."""
        numbers = _numbers(difference, space)
        return numbers is not None and all(n < 0 if op == "lt" else n >= 0 for n in numbers[1].values())

    def _decided(self, op: str, difference: IntExpr, space: Space) -> str | None:
        """The tile of `difference op 0` (lt or ge) when it is a known number in every slot; else None."""
        numbers = _numbers(difference, space)
        if numbers is None:
            return None
        shape, known = numbers

        def level(slot: tuple[int, ...]) -> str:
            if len(slot) == len(shape):
                return self.b.const(BOOL, known[slot] < 0 if op == "lt" else known[slot] >= 0)
            return self.b.stack(*(level((*slot, k)) for k in range(shape[len(slot)])))

        return level(())

    def flat(self, store: Storage, index: tuple[IntExpr, ...]) -> IntExpr:
        """Element offset of `index`, simplified under the ranks' bounds."""
        return self.facts.simplify(store.offset(index))

    def _load(
        self, store: Storage, index: tuple[IntExpr, ...], space: Space, mask: str | None, wanted: str | None
    ) -> str:
        """Elements where `mask` holds; `wanted` says at which points the index itself may be read."""
        offset = self._settle_values(self.flat(store, index), space, wanted)
        parts = affine_parts(offset, space) if offset is not None else None
        dtype = store.type.dtype
        if parts is None:
            simplified = self.flat(store, index)
            tile = self.index(simplified, space, mask)
            shape = self.b.types[tile]
            if shape.is_scalar and mask is None:
                return self.b.load(TileType(dtype), store.buffer, self.b.index_of(tile))
            if mask is not None:
                tile = self.b.broadcast(tile, _joined(shape, self.b.types[mask]))
            return self.b.gather(store.buffer, tile, mask)
        start, lane_slope, slot_slopes = parts
        lanes = space.lanes if lane_slope.const != 0 else 1
        slots = tuple(s.count if slope.const != 0 else 1 for s, slope in zip(space.slots, slot_slopes, strict=True))
        if mask is not None:  # a masked load has at least the mask's shape along dimensions it varies in
            wide = self.b.types[mask]
            lanes = max(lanes, wide.lanes)
            have = (1,) * (len(slots) - len(wide.slots)) + wide.slots
            slots = tuple(max(a, c) for a, c in zip(slots, have, strict=True))
        return self.b.load(TileType(dtype, slots, lanes), store.buffer, start, slot_slopes, lane_slope, mask)

    def raw(self, store: Storage, index: tuple[IntExpr, ...], space: Space) -> str:
        """The tile in memory at `index`, as it is stored."""
        return self._load(store, index, space, space.mask, None)

    def read(self, store: Storage, index: tuple[IntExpr, ...], space: Space, mask: str | None) -> str:
        """The tile in memory at `index`, in the compute type; not remembered, since it may be written again."""
        raw = self._load(store, index, space, self._and(space.mask, mask), mask)
        return self.b.cast(raw, compute_type(store.type.dtype))

    def _settle_values(self, offset: IntExpr, space: Space, mask: str | None) -> IntExpr | None:
        """Gather values that are the same for the whole tile become index variables; None when one varies inside it."""
        if not has_value(offset):
            return offset
        if any(isinstance(a, Value) and not a.expr.variables.isdisjoint(space.moving) for a in atoms(offset)):
            return None

        def leaf(atom: Var | Value) -> IntExpr:
            if isinstance(atom, Var):
                return var(atom.name)
            return self._scalar_index(atom.expr, space, mask)

        return rebuild(offset, leaf)

    def _scalar_index(self, e: Expr, space: Space, mask: str | None) -> IntExpr:
        """An index that all points of the tile share: read once, if `mask` holds at any of them."""
        still = Space(space.base)
        wanted = self._anywhere(mask) if mask is not None else None
        key = ("index", e, _base_key(space, e.variables), wanted)
        if key not in self.memo:
            tile = self.b.cast(self.value(e, still, wanted), I64)
            index = self.b.index_of(tile)
            self.memo[key] = str(index)
            return index
        return var(self.memo[key])

    def _anywhere(self, mask: str) -> str:
        """Whether `mask` holds at any point of the tile, as a scalar."""
        key = ("anywhere", mask)
        if key not in self.memo:
            b, found = self.b, mask
            slots = b.types[mask].slots
            for axis in range(len(slots)):
                found = b.reduce("or", found, axis)
            found = b.slice(found, *(0 for _ in slots)) if slots else found
            self.memo[key] = b.reduce("or", found) if b.types[found].lanes > 1 else found
        return self.memo[key]

    def store(
        self, store: Storage, index: tuple[IntExpr, ...], tile: str, space: Space, mask: str | None = None
    ) -> None:
        """Write `tile` (of the compute type) at `index`, rounded to the tensor's type."""
        b = self.b
        dtype = store.type.dtype
        value = b.cast(tile, dtype)
        active = self._and(space.mask, mask)
        offset = self.flat(store, index)
        settled = self._settle_values(offset, space, mask)
        parts = affine_parts(settled, space) if settled is not None else None
        value = b.broadcast(value, space.tile(dtype))
        if parts is None:
            offsets = b.broadcast(self.index(offset, space, mask), space.tile(I64))
            b.scatter(store.buffer, offsets, value, None if active is None else b.broadcast(active, space.tile(BOOL)))
            return
        start, lane_slope, slot_slopes = parts
        past_caches = self.streaming and lane_slope.const == 1 and active is None
        b.store(store.buffer, start, value, slot_slopes, lane_slope, active, past_caches)

    # --- indices as tiles ---

    def index(self, e: IntExpr, space: Space, mask: str | None = None) -> str:
        """The i64 tile of an integer expression."""
        key = (
            "idx",
            e,
            space.vector,
            space.lanes,
            space.slots,
            _base_key(space, variables(e)),
            mask if has_value(e) else None,
        )
        if key not in self.memo:
            self.memo[key] = self._index(e, space, mask)
        return self.memo[key]

    def _index(self, e: IntExpr, space: Space, mask: str | None) -> str:
        b = self.b
        moving = space.moving
        still = {m: c for m, c in e.terms if not any(_moves(a, moving) for a in m)}
        rest = [(m, c) for m, c in e.terms if m not in still]
        total: str | None = None
        if still or not rest:
            total = b.from_index(substitute(IntExpr(tuple(still.items())), space.base))
        for monomial, coefficient in rest:
            product: str | None = None
            for atom in monomial:
                factor = self._atom(atom, space, mask)
                product = factor if product is None else b.op("mul", product, factor)
            assert product is not None
            if coefficient != 1:
                product = b.op("mul", product, b.const(I64, coefficient))
            total = product if total is None else b.op("add", total, product)
        assert total is not None
        return total

    def _atom(self, atom: Atom, space: Space, mask: str | None) -> str:
        b = self.b
        match atom:
            case Var(name):
                return self._rank_tile(name, space)
            case Value(expr):
                return b.cast(self.value(expr, space, mask), I64)
            case FloorDiv(num, den):
                return b.op("div_floor", self.index(num, space, mask), self.index(den, space, mask))
            case Mod(num, den):
                return b.op("rem_floor", self.index(num, space, mask), self.index(den, space, mask))
            case Min(args) | Max(args):
                op = "min" if isinstance(atom, Min) else "max"
                tiles = [self.index(a, space, mask) for a in args]
                result = tiles[0]
                for t in tiles[1:]:
                    result = b.op(op, result, t)
                return result

    def _rank_tile(self, name: str, space: Space) -> str:
        b = self.b
        base = space.base.get(name, var(name))
        tile = b.iota(I64, space.lanes, base) if name == space.vector and space.lanes > 1 else b.from_index(base)
        for n, slot in enumerate(space.slots):
            if slot.rank != name or slot.count == 1:
                continue
            steps = []
            for k in range(slot.count):
                step = b.const(I64, k * slot.step)
                for _ in space.slots[n + 1 :]:
                    step = b.stack(step)
                steps.append(step)
            tile = b.op("add", tile, b.stack(*steps))
        return tile


def _joined(a: TileType, mask: TileType) -> TileType:
    """The type of `a` stretched to the shape of a mask over it."""
    depth = max(len(a.slots), len(mask.slots))
    own, other = ((1,) * (depth - len(t.slots)) + t.slots for t in (a, mask))
    return TileType(a.dtype, tuple(max(x, y) for x, y in zip(own, other, strict=True)), max(a.lanes, mask.lanes))


def out_of_range(type_: TensorType) -> str:
    """What a run says when an index that it read from a tensor is no index of a tensor of this type."""
    shape = ", ".join(show_extent(e) for e in type_.shape)
    return (
        f"DLC0540: an index taken from a tensor is outside of the {type_.dtype}[{shape}] that it indexes;"
        " look at the values of the model's integer inputs"
    )


def _base_key(space: Space, names: frozenset[str]) -> tuple[tuple[str, IntExpr], ...]:
    return tuple((k, v) for k, v in space.base.items() if k in names)


def _moves(atom: Atom, moving: frozenset[str]) -> bool:
    if isinstance(atom, Value):
        return True  # read as a tile, whatever its shape
    return not variables(IntExpr((((atom,), 1),))).isdisjoint(moving) or has_value(IntExpr((((atom,), 1),)))


def _numbers(e: IntExpr, space: Space) -> tuple[tuple[int, ...], dict[tuple[int, ...], int]] | None:
    """The shape of the slots that `e` varies in, and its value in each; None when it is not known or varies in lanes."""
    parts = affine_parts(e, space) if not has_value(e) else None
    if parts is None or parts[0].const is None or parts[1].const != 0:
        return None
    steps = [s.const for s in parts[2]]
    start, known = parts[0].const, [s or 0 for s in steps]
    if None in steps:
        return None
    shape = tuple(s.count if step else 1 for s, step in zip(space.slots, known, strict=True))
    slots = itertools.product(*map(range, shape))
    return shape, {slot: start + sum(k * s for k, s in zip(slot, known, strict=True)) for slot in slots}


def affine_parts(offset: IntExpr, space: Space) -> tuple[IntExpr, IntExpr, tuple[IntExpr, ...]] | None:
    """`(start, slope per lane, slope per slot step)` of an offset over `space`; None when it is not linear in a moving rank."""
    rest = offset
    slopes: dict[str, IntExpr] = {}
    for name in dict.fromkeys(([space.vector] if space.vector is not None else []) + [s.rank for s in space.slots]):
        parts = split_linear(rest, name)
        if parts is None:
            return None
        slopes[name] = substitute(parts[0], space.base)
        if any(n in space.moving for n in variables(parts[0])):
            return None
    start = substitute(rest, space.base)
    lane = slopes[space.vector] if space.vector is not None and space.lanes > 1 else int_expr(0)
    return start, lane, tuple(slopes[s.rank] * s.step if s.count > 1 else int_expr(0) for s in space.slots)
