"""Tensors of coded types become tensors of native ones, for what no kernel reads in its packed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dlc.errors import Unsupported
from dlc.ir.coded_sums import coded_sum
from dlc.ir.codes import codes_of, decode, values
from dlc.ir.dtype import BF16, U8, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.evaluate import round_to
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise, const, dtype_of, index_value, walk
from dlc.ir.extent import IntExpr, Var, has_value, int_expr, rebuild, var
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.packing import pack
from dlc.ir.program import Library, Param, Program, Region, tensor_types
from dlc.passes.coded_values import native, packed_row_bytes, read_packed, rounded, value_of
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import Names, all_einsums, drop_dead, map_regions, map_steps, whole_reads

_CLOSED = frozenset("select eq ne lt le gt ge min max minnum maxnum isnan isinf signbit".split())
"""Operators whose results on numbers of a type are numbers of the type, or tests: any type that holds them will do."""
_FOLDS = frozenset("max min argmax argmin argmax_last argmin_last".split())


@dataclass(frozen=True)
class DecodeCodes(Pass):
    """Store numbers of coded types in the least native type that holds them.

        const C: i4[n, k]                                 ->   const C: i8[n, k]                       its numbers
        const E: u3[v, d]                                 ->   const E: u8[v, d*3/8 + 1]               its packed codes
        Y[b, d] = cast<f32>(E[I[b], d]) * S[I[b]]              Y[b, d] = cast<f32>(E[I[b], d*3//8] >> d*3 % 8 ...) * S[I[b]]
        Q[n]: i4 = cast<i4>(X[n])                         ->   Q[n]: i8 = min(max(cast<i8>(X[n]), -8), 7)

    Integers and ternary numbers go to bytes, floats to bf16, which holds all of them. A table of which only gathered rows are
    read stays packed, and a read takes its code out of two bytes. Numbers stay the same, so that a cast to another type is the
    cast as it was. Arithmetic in a coded type is refused: a model that does it casts first. What `coded-products` packed for a kernel
    that takes codes as they are stays so.
    """

    name: ClassVar[str] = "decode-codes"

    def apply(self, program: Program) -> Program:
        types = tensor_types(program)
        if not any(t.dtype.is_coded for t in types.values()) and not any(map(_mentions, all_einsums(program))):
            return program
        return _Decoder(program, types).run()


def _mentions(step: Einsum) -> bool:
    """Whether an expression goes through a coded type."""
    return any(isinstance(x, (Cast, Bitcast, Const)) and x.dtype.is_coded for e in step.scalars for x in walk(e))


@dataclass
class _Decoder:
    program: Program
    types: dict[str, TensorType]
    consts: list[Param] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    packed: dict[str, DType] = field(default_factory=dict)
    tables: dict[DType, str] = field(default_factory=dict)
    loc: Loc = UNKNOWN

    def run(self) -> Program:
        program = self.program
        for p in program.params:
            self.refuse_border(p.type.dtype, p.name, "input")
        for r in program.results:
            self.refuse_border(self.types[r].dtype, r, "output")
        self.data = dict(program.data)
        self.names = Names(program)
        packable = self.gathered_only()
        sums = [coded_sum(s, self.types) for s in all_einsums(program)]
        self.streamed = {s.codes.tensor for s in sums if s is not None}
        for c in program.consts:
            self.constant(c, c.name in packable)
        decoded = map_regions(map_steps(program, self.step), self.library)
        return drop_dead(replace(decoded, consts=tuple(self.consts), data=self.data))

    def refuse_border(self, dtype: DType, name: str, what: str) -> None:
        if dtype.is_coded:
            reason = f"an {what} of type {dtype} has no native form: cast it in the model"
            raise Unsupported(self.program.loc, op=f"{what} '{name}'", reason=reason)

    # --- constants ---

    def gathered_only(self) -> set[str]:
        """Constants of codes of which Einsums read rows that data chooses, and nothing else."""
        reads: dict[str, bool] = {}
        for step in all_einsums(self.program):
            for a in step.accesses():
                gathered = any(map(has_value, a.index[:-1])) and not has_value(a.index[-1]) and a.default is None
                reads[a.tensor] = reads.get(a.tensor, True) and gathered if a.index else False
        whole = whole_reads(self.program)
        return {n for n, gathered in reads.items() if gathered and n not in whole and self.types[n].dtype.bits < 8}

    def constant(self, c: Param, packable: bool) -> None:
        dtype = c.type.dtype
        if c.name in self.streamed:
            self.consts.append(c)
            return
        if not dtype.is_coded or c.name not in self.data:
            self.consts.append(c if not dtype.is_coded else replace(c, type=_retyped(c.type)))
            return
        array = np.asarray(self.data[c.name])
        if packable:
            self.packed[c.name] = dtype
            array, kind = _packed_rows(codes_of(array), dtype), U8
        else:
            kind = native(dtype)
            array = decode(array, dtype).astype(kind.numpy)
        self.data[c.name] = array
        self.consts.append(Param(c.name, replace(c.type, dtype=kind, shape=tuple(map(int_expr, array.shape)))))

    def table(self, dtype: DType) -> str | None:
        """The constant with the values of a float type."""
        if not dtype.is_float:
            return None
        if dtype not in self.tables:
            name = self.tables[dtype] = self.names.fresh(f"values_{dtype}")
            self.data[name] = values(dtype).astype(BF16.numpy)
            self.consts.append(Param(name, TensorType(BF16, (int_expr(dtype.codes),))))
        return self.tables[dtype]

    # --- statements ---

    def library(self, region: Region) -> Region:
        body = tuple(
            replace(s, types=tuple(map(_retyped, s.types))) if isinstance(s, Library) and _coded(s.types) else s
            for s in region.body
        )
        return region if all(a is b for a, b in zip(body, region.body, strict=True)) else Region(body, region.yields)

    def step(self, step: Einsum) -> Einsum:
        self.loc = step.loc
        if coded_sum(step, self.types) is not None:
            return step
        if step.reduce is not None and step.reduce.op not in _FOLDS and any(t.is_coded for t in step.dtypes):
            raise Unsupported(
                step.loc, op=step.reduce.op, reason=f"sums in {step.dtype} have no native form: cast first"
            )
        exprs = tuple(self.settled(self.expr(e), e, t) for e, t in zip(step.exprs, step.dtypes, strict=True))
        where = None if step.where is None else self.expr(step.where)
        write = step.write
        if write is not None and any(map(has_value, write.index)):
            write = replace(write, index=tuple(map(self.index, write.index)))
        dtypes = tuple(map(native, step.dtypes))
        same = where is step.where and all(a is b for a, b in zip(exprs, step.exprs, strict=True))
        if same and write == step.write and dtypes == step.dtypes:
            return step
        return replace(step, exprs=exprs, where=where, write=write, dtypes=dtypes)

    def settled(self, e: Expr, before: Expr, dtype: DType) -> Expr:
        """What an Einsum of a coded type stores; an accumulator may have had another type."""
        source = self.type_of(before)
        if not dtype.is_coded or source == dtype:
            return e
        return rounded(e, native(source), dtype, "sat")

    # --- expressions ---

    def type_of(self, e: Expr) -> DType:
        return dtype_of(e, lambda t: self.types[t].dtype)

    def expr(self, e: Expr) -> Expr:
        """`e` over the native types; the same object where nothing is coded."""
        match e:
            case Const(number, dtype):
                return (
                    const(decode(round_to(np.asarray(number), dtype), dtype).item(), native(dtype))
                    if dtype.is_coded
                    else e
                )
            case Index(i):
                new = self.index(i)
                return e if new is i else Index(new)
            case Access():
                return self.access(e)
            case Apply(op, args):
                if op not in _CLOSED and any(self.type_of(a).is_coded for a in args):
                    reason = f"arithmetic in {self.type_of(args[0])} has no native form: cast first"
                    raise Unsupported(self.loc, op=op, reason=reason)
                made = tuple(map(self.expr, args))
                return e if all(a is b for a, b in zip(made, args, strict=True)) else Apply(op, made)
            case Cast(dtype, arg, mode):
                return self.cast(e, dtype, arg, mode)
            case Bitcast(dtype, arg):
                if dtype.is_coded or self.type_of(arg).is_coded:
                    raise Unsupported(
                        self.loc, op=f"bitcast<{dtype}>", reason="bits of coded types have no native form"
                    )
                inner = self.expr(arg)
                return e if inner is arg else Bitcast(dtype, inner)
            case Piecewise(cases, otherwise):
                pieces = tuple((self.expr(g), self.expr(v)) for g, v in cases)
                last = self.expr(otherwise)
                return e if (pieces, last) == (cases, otherwise) else Piecewise(pieces, last)

    def cast(self, e: Cast, dtype: DType, arg: Expr, mode: str) -> Expr:
        inner, source = self.expr(arg), self.type_of(arg)
        if dtype.is_coded:
            return inner if source == dtype else rounded(inner, native(source), dtype, mode)
        if source.is_coded and native(source) == dtype:
            return inner
        return e if inner is arg else Cast(dtype, inner, mode)

    def access(self, e: Access) -> Expr:
        index = tuple(map(self.index, e.index))
        default = None if e.default is None else self.expr(e.default)
        if e.tensor in self.packed:
            dtype = self.packed[e.tensor]
            code = read_packed(e.tensor, index[:-1], index[-1], dtype.bits)
            return value_of(code, dtype, self.table(dtype))
        same = default is e.default and all(a is b for a, b in zip(index, e.index, strict=True))
        return e if same else Access(e.tensor, index, default)

    def index(self, e: IntExpr) -> IntExpr:
        if not has_value(e):
            return e
        return rebuild(e, lambda a: var(a.name) if isinstance(a, Var) else index_value(self.expr(a.expr)))


def _packed_rows(codes: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    columns = codes.shape[-1]
    flat = codes.reshape(-1, columns)
    row = packed_row_bytes(columns, dtype.bits)
    out = np.zeros((len(flat), row), np.uint8)
    padded = -(-columns // 8) * 8  # so that rows pack as one stream
    full = np.zeros((len(flat), padded), np.uint8)
    full[:, :columns] = flat
    size = padded * dtype.bits // 8
    stream = pack(full, replace(dtype, per_byte=None)).reshape(len(flat), size)
    out[:, : min(row, size)] = stream[:, : min(row, size)]
    return out.reshape(*codes.shape[:-1], row)


def _retyped(of: TensorType) -> TensorType:
    return replace(of, dtype=native(of.dtype)) if of.dtype.is_coded else of


def _coded(types: Iterable[TensorType]) -> bool:
    return any(t.dtype.is_coded for t in types)
