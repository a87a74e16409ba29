"""Operands of contractions get the layout that register tiles stream: packed panels for one, contiguous rows for the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from dlc.costmodel.tiles import MOST_TAPS, panel_columns
from dlc.ir.bit_sums import packed_sum
from dlc.ir.dtype import BF16, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, Scan, Step, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, Piecewise, accesses, apply, const, dtype_of
from dlc.ir.extent import (
    IntExpr,
    int_expr,
    split_linear,
    substitute,
    var,
    variables,
)
from dlc.ir.facts import FactsPool
from dlc.ir.products import bordered_access, plain_access
from dlc.ir.program import Param, Program, Region, Stmt, tensor_types
from dlc.passes.contractions import FLOATS, contraction_factors
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.relayout import relayout
from dlc.passes.rewrite import Names, all_einsums, drop_dead, map_regions, whole_reads
from dlc.passes.row_pitch import row_pitch
from dlc.passes.words import in_words

FURTHER_BYTES = 1 << 20
"""Columns of more come from the last cache or from memory, whenever they are read."""


@dataclass(frozen=True)
class PrepareContractions(Pass):
    """Relayout the operands and results of contractions, convolutions included.

        O[b, c, y, x] = sum(k, i, j) (X[b, k, y+i-1, x+j-1] else 0) * W[c, k, i, j]
    ->  Xp[b, v, u, k] = X[b, k, v-1, u-1] else 0                 rows: padded once, the reduced rank contiguous
        Wp[p, i, j, k, l] = W[48*p + l, k, i, j]                  columns: a constant, packed now
        O[b, c, y, x]{0, 2, 3, 1} = sum(i, j, k) Xp[b, y+i, x+j, k] * Wp[c // 48, i, j, k, c % 48]

    Rows that have the reduced rank contiguous already stay where they are, with the border as a default. The *columns* are a free
    rank of one operand only; its lanes hold outputs. A constant operand is packed at compile time, another one at run time unless
    its columns are contiguous already. Results are stored with the columns innermost, and point-wise Einsums and window
    reductions follow the layout of what they read. With `pitch`, rows that would fall into one set of the first cache lie a line
    further apart (`row_pitch.py`).

    With fewer than `few_rows` rows of a product of two tensors that have the reduced rank contiguous, packing costs more than it
    saves: these are multiplied as they lie, lanes along that rank. Where bf16 numbers could be multiplied in pairs, a twelfth.

    Bytes are summed in i32 four products at a time, bf16 numbers in f32 two at a time: their columns are packed with the
    terms that share a 32-bit word innermost, `Wp[p, i, j, k // 4, l, k % 4]`, and zeros fill up the last word. Processors that
    multiply bf16 pairs take numbers below 2^-126 for 0; without `bf16_words` such sums stay in f32.

    Source: the packed operands of Goto and van de Geijn (TOMS 2008); channels-last direct convolution.
    """

    name: ClassVar[str] = "prepare-contractions"
    lanes: int = 16
    registers: int = 32
    least_work: int = 2048
    few_rows: int = 96
    bf16_words: bool = True
    pitch: bool = True

    def __post_init__(self) -> None:
        for option in ("lanes", "registers"):
            value = getattr(self, option)
            if value < 1 or value & (value - 1):
                raise BadOption(option=option, name=self.name, wanted="a power of two", value=value)

    def apply(self, program: Program) -> Program:
        return _Preparation(explicit_domains(program), self).run()


class _Preparation:
    def __init__(self, program: Program, options: PrepareContractions) -> None:
        self.program, self.options = program, options
        self.types = tensor_types(program)
        self.symbols = program.facts
        self.names = Names(program)
        self.data: dict[str, Any] = dict(program.data)
        self.consts = list(program.consts)
        self.const_names = {c.name for c in program.consts}
        self.whole = whole_reads(program)
        self.pool = FactsPool()
        self.coded: set[str] = set()
        self.packed: dict[tuple[object, ...], str] = {}
        self.readers: dict[str, list[tuple[Einsum, Access]]] = {}
        for step in all_einsums(program):
            for a in step.accesses():
                self.readers.setdefault(a.tensor, []).append((step, a))

    def run(self) -> Program:
        program = map_regions(self.program, self._region)
        if program is self.program:
            return program
        return drop_dead(replace(program, consts=tuple(self.consts), data=self.data))

    def _region(self, region: Region) -> Region:
        body: list[Stmt] = []
        for stmt in region.body:
            if isinstance(stmt, Einsum):
                body += self._step(stmt)
            elif isinstance(stmt, Scan):
                body.append(self._scan(stmt))
            else:
                body.append(stmt)
        return region if tuple(body) == region.body else Region(tuple(body), region.yields)

    def _scan(self, scan: Scan) -> Scan:
        steps: list[Step] = []
        for step in scan.body:
            steps += [self._scan(step)] if isinstance(step, Scan) else self._step(step)
        return replace(scan, body=tuple(steps))

    def _step(self, step: Einsum) -> list[Step]:
        if not step.row_major and step.write is None:  # a layout that was asked for; the borders are row-major
            return self._with_order(replace(step, order=None, pitch=0), step.order, step.pitch)
        if step.write is not None or self._coded(step):
            return [step]
        found = None if self._inner_product(step) else self._columns(step)
        if found is not None:
            made = in_words(self, step, *found)
            if made is not None:
                return made
            if step.dtype in FLOATS:
                return self._contraction(step, *found)
        step = self._transposed_constants(step)
        return self._with_order(step, self._followed_order(step))

    def _coded(self, step: Einsum) -> bool:
        """Whether the step sums products with packed codes, or such sums."""
        if packed_sum(step, self.types) is not None:
            self.coded.add(step.out)
            return True
        return step.reduce is not None and not self.coded.isdisjoint(step.reads)

    # --- choosing ---

    def _columns(self, step: Einsum) -> tuple[int, str] | None:
        """(which factor is the columns' operand, their rank), None when register tiles do not suit the step."""
        factors = contraction_factors(step, self.types)
        if factors is None or self._work(step) < self.options.least_work:
            return None
        free = {r.name: r.extent for r in step.ranks}
        best: tuple[float, int, str] | None = None
        innermost = step.ranks[-1].name if step.ranks else ""
        for side in (0, 1):
            mine, other = factors[side], factors[1 - side]
            plain = plain_access(mine)
            if plain is None:
                continue
            for name in free:
                if name not in mine.variables or name in other.variables or (free[name].const or 16) < 2:
                    continue
                size = float(min(free[name].const or 64, 256))
                constant = plain.tensor in self.const_names
                unit = self._slope(step, plain, name) == 1
                score = size + 1000 * constant
                if size >= self.options.lanes / 2:  # lanes that stay empty cost more than a copy
                    score += (500 if unit and not constant else 0) + (100 if name == innermost else 0)
                if not constant and not unit and self._rows_of(step, other, mine) < 4:
                    continue  # packing would cost as much as the contraction
                if best is None or score > best[0]:
                    best = (score, side, name)
        return None if best is None else (best[1], best[2])

    def _inner_product(self, step: Einsum) -> bool:
        """Whether both operands have the reduced rank contiguous and one of them few rows: nothing is worth packing then."""
        factors = contraction_factors(step, self.types)
        if factors is None or step.dtype not in FLOATS:
            return False
        plain = [a for f in factors if (a := plain_access(f)) is not None and a.tensor not in self.const_names]
        long = [r.name for r in step.reduced if r.extent.const is None or r.extent.const >= self.options.lanes]
        if len(plain) < 2 or not any(all(self._slope(step, a, name) == 1 for a in plain) for name in long):
            return False
        numbers = [{self._dtype(f), self.types[a.tensor].dtype} for f, a in zip(factors, plain, strict=True)]
        words = self.options.bf16_words and all(BF16 in n for n in numbers)  # pairs are worth the packing sooner
        few = self.options.few_rows // 12 if words else self.options.few_rows
        return min(self._rows_of(step, *pair, unknown=few) for pair in (factors, factors[::-1])) < few

    def _work(self, step: Einsum) -> int:
        total = 1
        for r in step.all_ranks:
            total *= r.extent.const if r.extent.const is not None else 64
        return total

    def _rows_of(self, step: Einsum, rows: Expr, cols: Expr, unknown: int = 64) -> int:
        total = 1
        for r in step.ranks:
            if r.name in rows.variables and r.name not in cols.variables:
                total *= r.extent.const if r.extent.const is not None else unknown
        return total

    def _slope(self, step: Einsum, a: Access, name: str) -> int | None:
        parts = split_linear(self._flat(step, a), name)
        return parts[0].const if parts is not None else None

    def _flat(self, step: Einsum, a: Access, type_: TensorType | None = None) -> IntExpr:
        facts = self.pool.facts(step.extents, self.symbols)
        total = int_expr(0)
        for i, s in zip(a.index, (type_ or self.types[a.tensor]).strides, strict=True):
            total = total + i * s
        return facts.simplify(total)

    # --- rewriting a contraction ---

    def _contraction(self, step: Einsum, side: int, column: str) -> list[Step]:
        factors = contraction_factors(step, self.types)
        assert factors is not None and step.reduce is not None
        steps: list[Step] = []
        cols, rows = factors[side], factors[1 - side]
        keeps = self._keeps_border(step, rows) and not self._small_beside(step, rows, cols)
        rows, made = (rows, []) if keeps else self._rows(step, rows)
        steps += [self._apart(m, replace(step, exprs=(Apply("mul", (rows, cols)),)), rows) for m in made]
        cols, made = self._packed(step, cols, column, rows)
        steps += made
        order = self._loop_order(step, rows)
        reduce = Reduce(step.reduce.op, order, step.reduce.accumulator)
        product = Apply("mul", (rows, cols))
        step = replace(step, exprs=(product,), reduce=reduce)
        last = next(n for n, r in enumerate(step.ranks) if r.name == column)
        return steps + self._with_order(step, self._result_order(step, last))

    def _loop_order(self, step: Einsum, rows: Expr) -> tuple[Rank, ...]:
        """Reduced ranks by falling stride in the rows' operand: the contiguous one innermost."""
        a = bordered_access(rows)
        assert a is not None
        flat = self._flat(step, a)

        def stride(r: Rank) -> int:
            parts = split_linear(flat, r.name)
            slope = parts[0] if parts is not None else int_expr(0)
            return slope.const if slope.const is not None else 1 << 40

        return tuple(sorted(step.reduced, key=stride, reverse=True))

    def _rows(self, step: Einsum, factor: Expr) -> tuple[Expr, list[Step]]:
        """The rows' operand as a plain access whose longest reduced rank is contiguous."""
        plain = plain_access(factor)
        longest = max(
            (r for r in step.reduced if r.name in factor.variables),
            key=lambda r: r.extent.const or 1 << 20,
            default=None,
        )
        if plain is not None and (longest is None or (longest.extent.const or 64) < 4):
            return factor, []
        if plain is not None and longest is not None and self._slope(step, plain, longest.name) == 1:
            return factor, []
        inner = factor.arg if isinstance(factor, Cast) else factor
        if isinstance(inner, Access) and not inner.children[: len(inner.children) - (inner.default is not None)]:
            window = self._window_copy(step, inner, longest)
            if window is not None:
                access, made = window
                return (Cast(factor.dtype, access, factor.mode) if isinstance(factor, Cast) else access), [made]
        if plain is not None:
            return factor, []
        return self._by_ranks(step, factor, "rows")

    def _keeps_border(self, step: Einsum, factor: Expr) -> bool:
        """Whether the rows' operand is read as it lies, 0 outside of it: its long rank is contiguous and the guards are of the others.

        Then the guards are settled outside of the innermost loop, most of them once for a row (`codegen/borders.py`).
        """
        a = bordered_access(factor)
        if a is None or a.default is None or not a.variables & {r.name for r in step.reduced}:
            return False
        longest = max((r for r in step.reduced if r.name in a.variables), key=lambda r: r.extent.const or 1 << 20)
        if (longest.extent.const or 64) < self.options.lanes or self._slope(step, a, longest.name) != 1:
            return False
        facts = self.pool.facts(step.extents, self.symbols)
        for i, extent in zip(a.index, self.types[a.tensor].shape, strict=True):
            if facts.within(i, extent):
                continue
            taps = [r for r in step.reduced if r.name in variables(i)]
            free = [r for r in step.ranks if r.name in variables(i)]
            short = all((r.extent.const or MOST_TAPS + 1) <= MOST_TAPS for r in taps)
            if longest in taps or not short or len(free) > 1 or any(split_linear(i, r.name) is None for r in (*taps, *free)):
                return False
        return True

    def _small_beside(self, step: Einsum, rows: Expr, cols: Expr) -> bool:
        """Whether a copy of the rows' operand with its border is little beside columns that come from further than the second cache.

        Few rows have many borders, and a row that is outside is multiplied as 0, from a register that a full tile has not got
        (512 channels, 3x3, 7x7 pixels: 1.2 ms from a copy, 1.8 as it lies).
        """
        a = bordered_access(rows)
        assert a is not None
        image = _known_size(self.types[a.tensor].shape)
        others = _known_size(r.extent for r in step.all_ranks if r.name in cols.variables)
        return image < others and others * self._dtype(cols).bytes > FURTHER_BYTES

    def _window_copy(self, step: Einsum, a: Access, longest: Rank | None) -> tuple[Access, Einsum] | None:
        """A copy of the part of `a`'s tensor that the step touches, padding filled in, the reduced rank innermost."""
        extents = step.extents
        bounds: list[tuple[IntExpr, IntExpr]] = []
        for i in a.index:
            lo = hi = next((int_expr(c) for m, c in i.terms if not m), int_expr(0))
            for name in sorted(variables(i)):
                parts = split_linear(i, name)
                if name not in extents:
                    return None
                if parts is None or parts[0].const is None:
                    return None
                reach = (extents[name] - 1) * parts[0].const
                lo, hi = (lo + reach, hi) if parts[0].const < 0 else (lo, hi + reach)
            bounds.append((lo, hi))
        dims = list(range(len(a.index)))
        last = next((d for d in dims if longest is not None and a.index[d] == var(longest.name)), None)
        if last is None and a.default is None:
            return None
        if last is not None:
            dims = [d for d in dims if d != last] + [last]
        ranks = tuple(Rank(f"d{d}", bounds[d][1] - bounds[d][0] + 1) for d in dims)
        index = tuple(var(f"d{d}") + bounds[d][0] for d in range(len(a.index)))
        made = einsum("", ranks, Access(a.tensor, index, a.default), self.types[a.tensor].dtype, loc=step.loc)
        made = replace(made, outs=(self._fresh(f"{a.tensor}_rows", made),))
        return Access(made.out, tuple(a.index[d] - bounds[d][0] for d in dims)), made

    def _fresh(self, base: str, made: Einsum) -> str:
        name = self.names.fresh(base)
        self.types[name] = TensorType(made.dtype, tuple(r.extent for r in made.ranks))
        return name

    def _by_ranks(self, step: Einsum, factor: Expr, hint: str) -> tuple[Expr, list[Step]]:
        """The operand computed into a tensor over the ranks it uses, reduced ones innermost."""
        dtype = self._dtype(factor)
        used = [r for r in (*step.ranks, *step.reduced) if r.name in factor.variables]
        made = einsum("", tuple(used), factor, dtype, loc=step.loc)
        made = replace(made, outs=(self._fresh(f"{step.out}_{hint}", made),))
        return Access(made.out, tuple(var(r.name) for r in used)), [made]

    def _dtype(self, e: Expr) -> DType:
        return dtype_of(e, lambda t: self.types[t].dtype)

    def _packed(self, step: Einsum, factor: Expr, column: str, rows: Expr) -> tuple[Expr, list[Step]]:
        """The columns' operand in panels, unless it streams as it is."""
        plain = plain_access(factor)
        assert plain is not None
        constant = plain.tensor in self.const_names
        if not constant and self._slope(step, plain, column) == 1:
            return factor, []
        width = panel_columns(step.extents[column], self.options.lanes, self.options.registers)
        used = [r for r in step.all_ranks if r.name in factor.variables and r.name != column]
        batch = [r for r in used if r in step.ranks]
        reduced = [r for r in self._loop_order(step, rows) if r in used]
        extent = step.extents[column]
        panels = (extent + (width - 1)) // width
        ranks = (*batch, Rank("panel", panels), *reduced, Rank("lane", int_expr(width)))
        whole = var("panel") * width + var("lane")
        source = Access(plain.tensor, tuple(substitute(i, {column: whole}) for i in plain.index))
        index = (
            *(var(r.name) for r in batch),
            var(column) // width,
            *(var(r.name) for r in reduced),
            var(column) % width,
        )
        full = extent.const is not None and extent.const % width == 0
        if constant:
            name = self._constant(plain.tensor, source, ranks, () if full else ((whole, extent),))
            packed: Expr = Access(name, index)
            return (Cast(factor.dtype, packed, factor.mode) if isinstance(factor, Cast) else packed), []
        dtype = self.types[plain.tensor].dtype
        expr: Expr = source
        if not full:
            inside = apply("lt", Index(whole), Index(extent))
            expr = Piecewise(((inside, source),), const(0, dtype))
        made = einsum("", ranks, expr, dtype, loc=step.loc)
        made = replace(made, outs=(self._fresh(f"{plain.tensor}_panels", made),))
        packed = Access(made.out, index)
        return (Cast(factor.dtype, packed, factor.mode) if isinstance(factor, Cast) else packed), [made]

    def _constant(
        self, tensor: str, source: Access, ranks: tuple[Rank, ...], guards: tuple[tuple[IntExpr, IntExpr], ...]
    ) -> str:
        """A relayout of a constant, evaluated now; the same relayout twice is one constant."""
        key = (tensor, source, ranks, guards)
        if key in self.packed:
            return self.packed[key]
        extents = [(r.name, r.extent.const) for r in ranks]
        shape = [(rank, extent) for rank, extent in extents if extent is not None]
        assert len(shape) == len(extents), "constants have static extents"
        bounds = tuple((e, int(n.const or 0)) for e, n in guards)
        name = self.names.fresh(f"{tensor}_packed")
        self.data[name] = relayout(self.data[tensor], source.index, shape, bounds)
        type_ = TensorType(self.types[tensor].dtype, tuple(r.extent for r in ranks))
        self.consts.append(Param(name, type_))
        self.types[name] = type_
        self.const_names.add(name)
        self.packed[key] = name
        return name

    def _transposed_constants(self, step: Einsum) -> Einsum:
        """A constant factor of a reduction that is no contraction (depthwise weights): the lanes' rank innermost."""
        factors = contraction_factors(step, self.types)
        if factors is None or not step.ranks:
            return step
        order = self._followed_order(step)
        lane = step.ranks[order[-1] if order is not None else -1].name
        changed = list(factors)
        for n, factor in enumerate(factors):
            plain = plain_access(factor)
            if plain is None or plain.tensor not in self.const_names or lane not in plain.variables:
                continue
            if self._slope(step, plain, lane) == 1:
                continue
            used = [r for r in (*step.reduced, *step.ranks) if r.name in plain.variables and r.name != lane]
            ranks = (*used, next(r for r in step.ranks if r.name == lane))
            name = self._constant(plain.tensor, plain, ranks, ())
            made: Expr = Access(name, tuple(var(r.name) for r in ranks))
            changed[n] = Cast(factor.dtype, made, factor.mode) if isinstance(factor, Cast) else made
        if changed == list(factors):
            return step
        return replace(step, exprs=(Apply("mul", tuple(changed)),))

    # --- layouts of results ---

    def _result_order(self, step: Einsum, last: int) -> tuple[int, ...] | None:
        """Columns innermost; the other dimensions as the readers can merge them best."""
        rest = [d for d in range(len(step.ranks)) if d != last]
        natural = (*rest, last)
        choices = [natural]
        single = [d for d in rest if step.ranks[d].extent.const == 1]  # lie anywhere
        several = [d for d in rest if d not in single]
        if len(several) <= 5:
            orders = ((*single, *p, last) for p in itertools.permutations(several))
            choices += [order for order in orders if order != natural]
        shape = tuple(r.extent for r in step.ranks)
        readers = self.readers.get(step.out, [])

        def linear(order: tuple[int, ...]) -> int:
            type_ = TensorType(step.dtype, shape, order)
            count = 0
            for reader, a in readers:
                flat = self._flat(reader, a, type_)
                count += all(split_linear(flat, r.name) is not None for r in reader.all_ranks)
            return count

        best = max(choices, key=linear) if any(_folds(a) for _, a in readers) else natural
        return None if best == tuple(range(len(step.ranks))) else best

    def _followed_order(self, step: Einsum) -> tuple[int, ...] | None:
        """The order of the widest operand read with the step's own free ranks.

        Row-major operands whose dimensions are named in another order are followed too, where no copy has to put the result
        right: by a reduction, and by a point-wise step that reads two of them and no other.
        """
        found = self._operand_orders(step)
        laid_out = [(rank, order) for rank, order, plain in found.values() if not plain]
        if not laid_out and step.out not in self.whole and (step.reduce is not None or len(found) > 1):
            orders = {order for _, order, _ in found.values()}
            laid_out = [(0, order) for order in orders if len(orders) == 1 or step.reduce is not None]
        if not laid_out:
            return None
        best = max(laid_out, key=lambda found: found[0])[1]
        return None if best == tuple(range(len(step.ranks))) else best

    def _operand_orders(self, step: Einsum) -> dict[str, tuple[int, tuple[int, ...], bool]]:
        """(rank, order of the step's ranks, whether it is row-major) of operands that all free ranks move, by tensor."""
        names = [r.name for r in step.ranks if r.extent.const != 1]  # the others lie anywhere
        units = tuple(d for d, r in enumerate(step.ranks) if r.extent.const == 1)
        places = {r.name: d for d, r in enumerate(step.ranks)}
        found: dict[str, tuple[int, tuple[int, ...], bool]] = {}
        for a in (a for e in step.exprs for a in accesses(e) if len(names) > 1):
            if a.tensor in found:
                continue
            type_ = self.types[a.tensor]
            dims = [_free_name(i, names) for i in a.index]
            followed = list(dict.fromkeys(name for d in type_.order or range(type_.rank) if (name := dims[d]) is not None))
            if sorted(followed) == sorted(names):
                found[a.tensor] = (type_.rank, (*units, *(places[n] for n in followed)), type_.order is None)
        return found

    def _with_order(self, step: Einsum, order: tuple[int, ...] | None, pitch: int = 0) -> list[Step]:
        """The step storing its result in `order`; where something needs it row-major, a copy follows.

        Rows get at least `pitch` elements between them, more where that is better for who reads them.
        """
        if step.out not in self.whole:
            pitch = max(pitch, self._pitch(step, order, self.readers.get(step.out, ())))
        if (order is None and not pitch) or len(step.outs) != 1:
            self._record(step)
            return [step]
        if step.out not in self.whole:
            step = replace(step, order=order, pitch=pitch)
            self._record(step)
            return [step]
        inner = self.names.fresh(f"{step.out}_tile")
        made = replace(step, outs=(inner,), order=order, pitch=pitch)
        self._record(made)
        copy = einsum(
            step.out, step.ranks, Access(inner, tuple(var(r.name) for r in step.ranks)), step.dtype, loc=step.loc
        )
        self._record(copy)
        return [made, copy]

    def _pitch(self, step: Einsum, order: tuple[int, ...] | None, readers: Iterable[tuple[Einsum, Access]]) -> int:
        if not self.options.pitch:
            return 0
        return row_pitch(TensorType(step.dtype, tuple(r.extent for r in step.ranks), order), readers, self.symbols)

    def _apart(self, made: Step, reader: Einsum, rows: Expr) -> Einsum:
        """An operand's copy with the pitch that suits its one reader."""
        plain = plain_access(rows)
        assert isinstance(made, Einsum) and plain is not None
        made = replace(made, pitch=self._pitch(made, made.order, [(reader, plain)]))
        self._record(made)
        return made

    def _record(self, step: Einsum) -> None:
        shape = tuple(r.extent for r in step.ranks)
        for out, dtype in zip(step.outs, step.dtypes, strict=True):
            self.types[out] = TensorType(dtype, shape, step.order, step.pitch)

    # for words.py
    rows, rows_of, loop_order, slope = _rows, _rows_of, _loop_order, _slope
    constant, fresh, result_order, with_order = _constant, _fresh, _result_order, _with_order
    by_ranks, step = _by_ranks, _step


def _known_size(extents: Iterable[IntExpr]) -> int:
    """The product of the extents that are known: the elements for one index of the others."""
    return math.prod(e.const for e in extents if e.const is not None)


def _folds(a: Access) -> bool:
    """Whether the access splits or merges ranks (`//`, `%`), so that the layout decides if it is linear."""
    return any(i.atom is None and i.const is None or "//" in str(i) or "%" in str(i) for i in a.index)


def _free_name(i: IntExpr, names: list[str]) -> str | None:
    found = [n for n in names if n in variables(i)]
    return found[0] if len(found) == 1 else None
