"""Constant matrices become codes with scales: linear layers and embedding tables in few bits, as Einsums."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

from dlc.errors import BadInput
from dlc.ir.codes import coded
from dlc.ir.dtype import BF16, DTYPES, F16, F32, F64, I8, I64, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, Scan, Step, TensorType, einsum
from dlc.ir.evaluate import hold
from dlc.ir.expr import Access, Apply, Cast, Expr, apply, const, dtype_of, index_value, transform
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.program import Param, Program, Region, Stmt, tensor_types
from dlc.passes.bit_budget import Choice, assign
from dlc.passes.pipeline import Pass
from dlc.passes.quantisers import Array, Grid, Quantised, compensated, relative_error, round_to_nearest
from dlc.passes.rewrite import Names, drop_dead, map_regions
from dlc.passes.weight_layers import FLOATS, Gather, Linear, find_gather, find_linear, near_names, skipped, unused_skip

AUTO = ("i2", "i3", "i4", "i5", "i6", "i8")
_LEAST_ELEMENTS = 256  # smaller matrices are not worth a scale


class BadQuantisation(BadInput):
    """What is asked of the quantiser does not exist, or does not go together."""

    code = "DLC0313"
    template = "cannot quantise: {reason}"
    hint = "for example weights='i4', group=32, activation='i8'; types are in docs/types.md, options in docs/quantisation.md"


class NeedsCalibration(BadInput):
    """Something was asked for that follows from example inputs, and there are none."""

    code = "DLC0312"
    template = "{what} needs example inputs of the model"
    hint = "dlc.Quantize(..., calibrate=[(x,), ...]), each as the model is called"


class SkipsNothing(BadInput):
    """A name in `skip` is none of the model: the layer that was meant would be quantised."""

    code = "DLC0314"
    template = (
        "`skip` names '{pattern}', and the program has no parameter of this name (a tied one has one of its names)"
    )
    hint = "{way}"


class UnevenActivations(BadInput):
    """The terms of a sum are no whole number of groups of activations."""

    code = "DLC0315"
    template = "activations are to be rounded in groups of {size}, and '{tensor}' multiplies {terms} of them"
    hint = "take a divisor of {terms}, None for one scale a row, or skip=('{tensor}',)"


@dataclass(frozen=True)
class Calibration:
    """What example inputs say about the rows that a layer multiplies.

    Attributes:
        moments: sum over rows of x x^T, f64[k, k].
        greatest: the largest |x| of each column, f64[k].
    """

    moments: Array
    greatest: Array


@dataclass(frozen=True)
class QuantisedLayer:
    """What became of one matrix.

    Attributes:
        name: of the constant.
        shape: (outputs, inputs) of a linear layer, (rows, columns) of a table.
        dtype: type of the codes.
        bits: of memory per weight, with scales and zero points.
        weight_error: |W - W'| / |W|.
        output_error: the same of the products with the calibration inputs; None without.
        outliers: columns kept as f16.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    bits: float
    weight_error: float
    output_error: float | None = None
    outliers: int = 0

    def to_json(self) -> dict[str, Any]:
        """The layer as plain data."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "type": self.dtype,
            "bits": round(self.bits, 4),
            "weight_error": float(f"{self.weight_error:.4g}"),
            "output_error": None if self.output_error is None else float(f"{self.output_error:.4g}"),
            "outliers": self.outliers,
        }


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store matrices of weights as codes of a few bits.

        Y[m, n] = sum(k) X[m, k] * W[n, k]                                       W a constant

    ->  const C: i4[n, k]      const S: f16[n, k/32]
        V[n, k] = cast<f32>(C[n, k]) * cast<f32>(S[n, k // 32])
        Y[m, n] = sum(k) X[m, k] * V[n, k]

    and with `activation=i8`, scales and codes of the rows found when it runs:

        A[m]    = max(k) abs(X[m, k])
        R[m]    = select(A[m] == 0, 1, A[m] / 127)
        Q[m, k] = cast<i8>(round(X[m, k] / R[m]))
        Y[m, n] = sum(k) (cast<f32>(Q[m, k]) * R[m]) * V[n, k]

    and in the same way with fewer bits: `i4` to `i2` in steps of a 7th, a 3rd or all of A, `b4` to `b2` as the odd multiples of a 15th,
    a 7th or a 3rd of it. `b1` are signs, and R the mean of abs(X), with which they differ least from X.

    Any coded type, u8 and i8; with zero points (`codes` or `real`) the numbers are `(C - Z) * S`. A table of which rows are gathered
    is read as `C[I[b], d] * S[I[b], d // 32]`. What is quantised is found by structure: products with a constant matrix along one
    rank, and gathers. Changes the results: that is what was asked for.

    Source: Dettmers et al., LLM.int8() (arXiv 2208.07339) for activations by row and outlier columns; Frantar et al., GPTQ
    (2210.17323); Rastegari et al., XNOR-Net (1603.05279), section 3.1, for the scale of signs.
    """

    name: ClassVar[str] = "quantize-weights"
    weights: str = "i4"
    group: int | None = 32
    activation: Literal["f32", "bf16", "i8", "i4", "i3", "i2", "b4", "b3", "b2", "b1"] = "f32"
    activation_group: int | None = None
    scales: Literal["f16", "bf16", "f32", "f8e8m0"] = "f16"
    zero_point: Literal["auto", "none", "codes", "real"] = "auto"
    skip: tuple[str, ...] = ()
    tables: bool = True
    method: Literal["auto", "nearest", "compensated"] = "auto"
    outliers: float = 0.0

    def __post_init__(self) -> None:
        for size in (self.group, self.activation_group):
            if size is not None and (not isinstance(size, int) or size < 2):
                raise BadQuantisation(reason=f"a group of {size!r} weights")
        for name, known in choices().items():
            if getattr(self, name) not in known:
                raise BadQuantisation(reason=f"'{name}' is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not isinstance(self.weights, str):
            raise BadQuantisation(reason=f"{self.weights!r} is no name of a type")
        if isinstance(self.skip, str):
            raise BadQuantisation(reason=f"`skip` is a tuple of names, not the text {self.skip!r}")
        if not self.outliers >= 0:
            raise BadQuantisation(reason=f"outliers from {self.outliers}")
        if self.budget is None:
            self.grid(self.weights)

    def apply(self, program: Program) -> Program:
        return quantize_weights(program, self)[0]

    @property
    def budget(self) -> tuple[float, str] | None:
        """(4.5, "bits") or (0.01, "error") of `auto:4.5bits`; None for one type."""
        if not self.weights.startswith("auto"):
            return None
        found = re.fullmatch(r"auto:(\d+\.?\d*|\.\d+)(bits|error)", self.weights)
        if found is None:
            raise BadQuantisation(reason=f"'{self.weights}' is no budget: write auto:4.5bits or auto:0.02error")
        return float(found[1]), found[2]

    def grid(self, weights: str) -> Grid:
        dtype = DTYPES.get(weights)
        if dtype is None or not (dtype.is_coded or weights in ("u8", "i8")) or weights == "f8e8m0":
            raise BadQuantisation(reason=f"'{weights}' is no type of 1 to 8 bits for weights")
        zero = self.zero_point
        if zero == "auto":
            zero = "none" if dtype.kind != "u" else "real" if dtype.bits == 1 else "codes"
        if zero == "codes" and not dtype.is_int:
            raise BadQuantisation(reason=f"{dtype} has no zero point among its codes")
        if zero == "none" and dtype.kind == "u":
            raise BadQuantisation(reason=f"{dtype} has no numbers below 0, and needs a zero point")
        if zero == "real" and self.scales == "f8e8m0":
            raise BadQuantisation(reason="f8e8m0 has neither 0 nor numbers below, and holds no zero points")
        return Grid(dtype, self.group, DTYPES[self.scales], zero)


@cache
def choices() -> Mapping[str, tuple[str, ...]]:
    """The values that options of few values take, by option."""
    hints = get_type_hints(QuantizeWeights)
    return {f.name: get_args(hints[f.name]) for f in fields(QuantizeWeights) if get_origin(hints[f.name]) is Literal}


def quantize_weights(
    program: Program,
    options: QuantizeWeights,
    calibration: Mapping[int, Calibration] | None = None,
    given: Mapping[str, Quantised] | None = None,
) -> tuple[Program, tuple[QuantisedLayer, ...]]:
    """The program with its matrices quantised, and what became of each.

    Args:
        calibration: by the place of a linear layer among `linear_layers(program)`.
        given: matrices that are quantised already, by the constant they are for.

    Raises:
        BadQuantisation, NeedsCalibration, SkipsNothing, UnevenActivations.
    """
    unused = unused_skip([c.name for c in program.consts], options.skip)
    if unused is not None:
        raise SkipsNothing(pattern=unused, way=near_names(unused, candidates(program, replace(options, skip=()))))
    if calibration is None and (options.method == "compensated" or options.outliers):
        raise NeedsCalibration(what="method='compensated'" if options.method == "compensated" else "outliers")
    return _Quantiser(program, options, calibration or {}, given or {}).run()


def linear_layers(program: Program, options: QuantizeWeights) -> list[Linear]:
    """The products with constant matrices that would be quantised, in order."""
    search = Search(program, options)
    map_regions(program, search.region)
    return search.linears


def candidates(program: Program, options: QuantizeWeights) -> dict[str, TensorType]:
    """Constant matrices of floats that are not to be skipped."""
    found = {}
    for c in program.consts:
        shape = [e.const or 0 for e in c.type.shape]
        if c.name not in program.data or c.type.dtype not in FLOATS or len(shape) != 2:
            continue
        if shape[0] * shape[1] >= _LEAST_ELEMENTS and not skipped(c.name, options.skip):
            found[c.name] = c.type
    return found


class Search:
    """Walks regions and tells what each of their Einsums is; a rewrite overrides `linear`, `gather` and `before`."""

    def __init__(self, program: Program, options: QuantizeWeights) -> None:
        self.program, self.options = program, options
        self.weights = candidates(program, options)
        self.linears: list[Linear] = []
        self.gathers: list[Gather] = []

    def region(self, region: Region) -> Region:
        self.enter()
        known: dict[str, Einsum] = {}
        body: list[Stmt] = []
        for stmt in region.body:
            made = self.steps(stmt, known) if isinstance(stmt, (Einsum, Scan)) else [stmt]
            body += [*self.before(), *made]
        same = len(body) == len(region.body) and all(a is b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)

    def steps(self, step: Step, known: dict[str, Einsum]) -> Sequence[Step]:
        if isinstance(step, Scan):
            body = [made for inner in step.body for made in self.steps(inner, known)]
            same = len(body) == len(step.body) and all(a is b for a, b in zip(body, step.body, strict=True))
            return [step if same else replace(step, body=tuple(body))]
        if len(step.outs) == 1:
            known[step.out] = step
        linear = find_linear(step, self.weights, known)
        if linear is not None:
            self.linears.append(linear)
            return self.linear(linear)
        gather = find_gather(step, self.weights) if self.options.tables else None
        if gather is not None:
            self.gathers.append(gather)
            return self.gather(gather)
        return [step]

    def enter(self) -> None:
        """A region begins."""

    def before(self) -> Sequence[Stmt]:
        """Statements that what was just made needs before it."""
        return ()

    def linear(self, layer: Linear) -> Sequence[Step]:
        return [layer.step]

    def gather(self, layer: Gather) -> Sequence[Step]:
        return [layer.step]


@dataclass(frozen=True)
class _Stored:
    """A matrix in the program: names of its constants."""

    codes: str
    scales: str
    zeros: str | None
    grid: Grid
    columns: tuple[int, ...] = ()  # kept apart
    apart: str | None = None


class _Quantiser(Search):
    def __init__(
        self,
        program: Program,
        options: QuantizeWeights,
        calibration: Mapping[int, Calibration],
        given: Mapping[str, Quantised],
    ) -> None:
        super().__init__(program, options)
        self.calibration, self.given = calibration, given
        self.types = tensor_types(program)
        self.names = Names(program)
        self.consts, self.data = list(program.consts), dict(program.data)
        self.stored: dict[tuple[str, bool], _Stored] = {}
        self.report: list[QuantisedLayer] = []

    def run(self) -> tuple[Program, tuple[QuantisedLayer, ...]]:
        self.chosen = self.choose()
        program = map_regions(self.program, self.region)
        if program is self.program:
            return program, ()
        program = drop_dead(replace(program, consts=tuple(self.consts), data=self.data))
        used = {c.name for c in program.consts}
        return replace(program, data={n: a for n, a in self.data.items() if n in used}), tuple(self.report)

    # --- types ---

    def choose(self) -> dict[tuple[str, bool], Grid]:
        """The grid of every matrix: one for all, or by the budget."""
        budget = self.options.budget
        search = Search(self.program, self.options)
        map_regions(self.program, search.region)
        keys = {(x.tensor, x.transposed): n for n, x in reversed(list(enumerate(search.linears)))}
        keys |= {(g.tensor, False): -1 for g in search.gathers if (g.tensor, False) not in keys}
        self.first = keys
        unknown = self.given.keys() - {tensor for tensor, _ in keys}
        if unknown:
            raise BadQuantisation(reason=f"'{min(unknown)}' is no matrix that would be quantised")
        keys = {key: n for key, n in keys.items() if key[0] not in self.given}
        if budget is None:
            grid = self.options.grid(self.options.weights)
            return dict.fromkeys(keys, grid)
        grids = [self.options.grid(t) for t in AUTO]
        choices = {key: [self.choice(key, place, g) for g in grids] for key, place in keys.items()}
        try:
            return {key: grids[at] for key, at in assign(choices, *budget).items()}
        except ValueError as error:
            raise BadQuantisation(reason=str(error)) from None

    def choice(self, key: tuple[str, bool], place: int, grid: Grid) -> Choice:
        w = self.matrix(key)
        moments = self.calibration[place].moments if place in self.calibration else None
        error = relative_error(w, round_to_nearest(w, grid).dense(), moments)
        return Choice(grid.bits(w.shape[1]) * w.size, error * error, w.size)

    def matrix(self, key: tuple[str, bool]) -> Array:
        tensor, transposed = key
        w = hold(np.asarray(self.data[tensor]), self.types[tensor].dtype)
        if not np.isfinite(w).all():
            raise BadQuantisation(reason=f"'{tensor}' holds an infinity or NaN: skip it")
        return w.T if transposed else w

    # --- constants ---

    def store(self, tensor: str, transposed: bool) -> _Stored:
        """The matrix as constants [n, k]; the same one for all that read it."""
        key = (tensor, transposed)
        if key in self.stored:
            return self.stored[key]
        known = self.calibration.get(self.first[key])
        if tensor in self.given:
            return self.keep(key, self.matrix(key), self.given[tensor], (), known)
        grid, w = self.chosen[key], self.matrix(key)
        columns: tuple[int, ...] = ()
        if self.options.outliers and known is not None:
            columns = tuple(int(c) for c in np.flatnonzero(known.greatest >= self.options.outliers))
        rest = w.copy()
        rest[:, list(columns)] = 0.0
        moments = None if known is None else known.moments
        exact = self.options.method != "nearest" and moments is not None
        made = compensated(rest, grid, moments) if exact and moments is not None else round_to_nearest(rest, grid)
        return self.keep(key, w, made, columns, known)

    def keep(
        self, key: tuple[str, bool], w: Array, made: Quantised, columns: tuple[int, ...], known: Calibration | None
    ) -> _Stored:
        """A quantised matrix as constants, and its line of the report."""
        tensor, grid = key[0], made.grid
        if made.codes.shape != w.shape:
            is_given, wanted = (" x ".join(map(str, s)) for s in (made.codes.shape, w.shape))
            raise BadQuantisation(reason=f"'{tensor}' is {wanted}, what is given for it {is_given}")
        moments = None if known is None else known.moments
        apart = None
        if columns:
            apart = self.add(f"{tensor}_outliers", w[:, list(columns)].astype(np.float16), F16)
        zeros = None if made.zeros is None else self.add(f"{tensor}_zeros", *self.zeros_of(made))
        codes = self.add(f"{tensor}_codes", _in(made.codes, grid.dtype), grid.dtype)
        scales = self.add(f"{tensor}_scales", made.scales, grid.scales)
        found = self.stored[key] = _Stored(codes, scales, zeros, grid, columns, apart)
        dense = made.dense()
        dense[:, list(columns)] = w[:, list(columns)].astype(np.float16).astype(np.float64)
        bits = grid.bits(w.shape[1]) + 16 * len(columns) / w.shape[1]
        output = None if moments is None else relative_error(w, dense, moments)
        shape = (w.shape[0], w.shape[1])
        self.report.append(
            QuantisedLayer(tensor, shape, str(grid.dtype), bits, relative_error(w, dense), output, len(columns))
        )
        return found

    @staticmethod
    def zeros_of(made: Quantised) -> tuple[Array, DType]:
        assert made.zeros is not None
        grid = made.grid
        return (_in(made.zeros, grid.dtype), grid.dtype) if grid.zero == "codes" else (made.zeros, grid.scales)

    def add(self, hint: str, array: Array, dtype: DType) -> str:
        name = self.names.fresh(hint)
        self.data[name] = np.ascontiguousarray(array)
        self.types[name] = TensorType(dtype, tuple(map(int_expr, array.shape)))
        self.consts.append(Param(name, self.types[name]))
        return name

    # --- statements ---

    def enter(self) -> None:
        self.waiting: list[Einsum] = []
        self.dense: dict[str, str] = {}
        self.rounded: dict[object, tuple[str, ...]] = {}

    def steps(self, step: Step, known: dict[str, Einsum]) -> Sequence[Step]:
        outside = dict(self.rounded)
        made = super().steps(step, known)
        if isinstance(step, Scan):
            self.rounded = outside  # what a scan's body makes is not there after it
        return made

    def before(self) -> Sequence[Stmt]:
        made, self.waiting = self.waiting, []
        return made

    def number(self, s: _Stored, row: IntExpr, column: IntExpr) -> Expr:
        """The weight at a place of the matrix."""
        size = s.grid.group
        group = int_expr(0) if size is None or self.types[s.scales].shape[1].const == 1 else column // size
        value: Expr = Cast(F32, Access(s.codes, (row, column)))
        if s.zeros is not None:
            value = apply("sub", value, self.as_f32(Access(s.zeros, (row, group))))
        return apply("mul", value, self.as_f32(Access(s.scales, (row, group))))

    def as_f32(self, e: Expr) -> Expr:
        return e if self.dtype(e) == F32 else Cast(F32, e)

    def dtype(self, e: Expr) -> DType:
        return dtype_of(e, lambda t: self.types[t].dtype)

    def gather(self, layer: Gather) -> Sequence[Step]:
        stored = self.store(layer.tensor, False)
        of = self.types[layer.tensor].dtype

        def visit(e: Expr) -> Expr | None:
            if not isinstance(e, Access) or e.tensor != layer.tensor:
                return None
            value = self.number(stored, *e.index)
            return value if of == F32 else Cast(of, value)

        return [replace(layer.step, exprs=tuple(transform(e, visit) for e in layer.step.exprs))]

    def linear(self, layer: Linear) -> Sequence[Step]:
        stored = self.store(layer.tensor, layer.transposed)
        step, n, k = layer.step, layer.column, layer.term
        if stored.codes not in self.dense:
            name = self.emit(
                self.waiting, f"{layer.tensor}_dequantised", (n, k), self.number(stored, var(n.name), var(k.name))
            )
            self.dense[stored.codes] = name
        weight = Access(self.dense[stored.codes], (var(n.name), var(k.name)))
        made: list[Einsum] = []
        rows = layer.rows
        apart = self.outliers(made, layer, stored) if stored.columns else None
        if apart is not None:
            rows = apply("mul", self.as_f32(rows), self.inside(stored, k))
        rows = self.activation(made, layer, rows)
        assert step.reduce is not None
        total = replace(step, exprs=(apply("mul", rows, weight),), reduce=_in_f32(step.reduce))
        if apart is None:
            return [*made, total]
        part = self.names.fresh(f"{step.out}_inliers")
        self.types[part] = TensorType(F32, tuple(r.extent for r in step.ranks))
        at = tuple(var(r.name) for r in step.ranks)
        both = apply("add", Access(part, at), Access(apart, at))
        value = both if step.dtype == F32 else Cast(step.dtype, both)
        whole = einsum(step.out, step.ranks, value, step.dtype, loc=step.loc)
        return [*made, replace(total, outs=(part,), dtypes=(F32,), reduce=step.reduce and Reduce("sum", (k,))), whole]

    def emit(
        self, into: list[Einsum], hint: str, ranks: tuple[Rank, ...], expr: Expr, reduce: Reduce | None = None
    ) -> str:
        name = self.names.fresh(hint)
        dtype = self.dtype(expr)
        into.append(replace(einsum(name, ranks, expr, dtype), reduce=reduce))
        self.types[name] = TensorType(dtype, tuple(r.extent for r in ranks))
        return name

    # --- activations ---

    def activation(self, made: list[Einsum], layer: Linear, rows: Expr) -> Expr:
        """The rows as they are multiplied, f32: as they came, through bf16, or through integers with a scale per row or group."""
        kind = self.options.activation
        if kind == "f32":
            return self.as_f32(rows)
        free = tuple(r for r in layer.step.ranks if r.name in rows.variables)
        k = layer.term
        key = (rows, free, k)
        place = (*(var(r.name) for r in free), var(k.name))
        if kind == "bf16":
            if self.dtype(rows) == BF16:
                return Cast(F32, rows)
            if key not in self.rounded:
                self.rounded[key] = (self.emit(made, f"{layer.step.out}_bf16", (*free, k), Cast(BF16, rows)),)
            return Cast(F32, Access(self.rounded[key][0], place))
        if key not in self.rounded:
            self.rounded[key] = self.codes_of(made, layer, free, self.as_f32(rows), DTYPES[kind])
        codes, scales = self.rounded[key]
        return apply("mul", Cast(F32, Access(codes, place)), Access(scales, self.scale_place(free, var(k.name), k)))

    def scale_place(self, free: tuple[Rank, ...], k: IntExpr, term: Rank) -> tuple[IntExpr, ...]:
        size = self.options.activation_group
        outer = tuple(var(r.name) for r in free)
        return outer if size is None or size >= (term.extent.const or 0) else (*outer, k // size)

    def codes_of(
        self, made: list[Einsum], layer: Linear, free: tuple[Rank, ...], rows: Expr, dtype: DType
    ) -> tuple[str, str]:
        """Names of the tensors of codes and scales."""
        k, size, out = layer.term, self.options.activation_group, layer.step.out
        length = k.extent.const
        if size is None or length is None or size >= length:
            ranks, reduce, value = free, k, rows
        else:
            taken = {r.name for r in layer.step.all_ranks}
            g = Rank(_other("g", taken), int_expr(-(-length // size)))
            j = Rank(_other("j", taken | {g.name}), int_expr(size))
            at = var(g.name) * size + var(j.name)
            ranks, reduce, value = (*free, g), j, rows.substitute({k.name: at})
            if length % size:
                raise UnevenActivations(layer.step.loc, size=size, tensor=layer.tensor, terms=length)
        signs = dtype.is_bipolar and dtype.bits == 1
        hint, op, parts = ("total", "sum", reduce.extent.const) if signs else ("greatest", "max", dtype.highest)
        assert parts is not None, "a constant matrix has extents that are known"
        size_name = self.emit(made, f"{out}_{hint}", ranks, apply("abs", value), Reduce(op, (reduce,)))
        whole = Access(size_name, tuple(var(r.name) for r in ranks))
        step = apply("select", apply("eq", whole, const(0.0)), const(1.0), apply("div", whole, const(float(parts))))
        scales = self.emit(made, f"{out}_scales", ranks, step)
        number = apply("div", rows, Access(scales, self.scale_place(free, var(k.name), k)))
        codes = Cast(dtype, number if dtype.is_bipolar else apply("round", number))
        return self.emit(made, f"{out}_{'bytes' if dtype == I8 else 'codes'}", (*free, k), codes), scales

    # --- outliers ---

    def inside(self, stored: _Stored, k: Rank) -> Expr:
        """1 where a column is multiplied in few bits, 0 where it is kept apart."""
        name = f"{stored.codes}_inliers"
        if name not in self.types:
            mask = np.ones(k.extent.const or 0, np.float32)
            mask[list(stored.columns)] = 0.0
            self.add(name, mask, F32)
        return Access(name, (var(k.name),))

    def outliers(self, made: list[Einsum], layer: Linear, stored: _Stored) -> str:
        """The tensor with the products of the columns that are kept as f16."""
        step, n, k = layer.step, layer.column, layer.term
        name = f"{stored.codes}_columns"
        if name not in self.types:
            self.add(name, np.asarray(stored.columns, np.int64), I64)
        c = Rank(_other("c", {r.name for r in step.all_ranks}), int_expr(len(stored.columns)))
        chosen = index_value(Access(name, (var(c.name),)))
        rows = self.as_f32(layer.rows).substitute({k.name: chosen})
        assert stored.apart is not None
        weight = Cast(F32, Access(stored.apart, (var(n.name), var(c.name))))
        return self.emit(made, f"{step.out}_outliers", step.ranks, Apply("mul", (rows, weight)), Reduce("sum", (c,)))


def _in_f32(reduce: Reduce) -> Reduce:
    return reduce if reduce.accumulator in (None, F32, F64) else replace(reduce, accumulator=F32)


def _in(codes: Array, dtype: DType) -> Array:
    return coded(codes, dtype) if dtype.is_coded else codes.view(dtype.numpy)


def _other(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
