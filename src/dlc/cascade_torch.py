"""A cascade as a torch module, for back ends that take torch or, exported from it, ONNX.

Extents are numbers here, so that all index arithmetic is constant: an access becomes slices, `index_select` and a permutation
where its dimensions use ranks of their own, and indexing otherwise; sums of products of two or more tensors become
`torch.einsum`, those over windows of a padded tensor a convolution. Each value knows the ranks of its dimensions.

An unguarded index that a tensor holds is kept inside by `clamp`, and whether all of them were inside is one more result:
the caller raises the error. What has no counterpart is refused with the Einsum's place (`NotInTorch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dlc.cascade_convolution import find_convolution
from dlc.errors import Unsupported
from dlc.ir.dtype import BOOL, DType, default_accumulator
from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import FloorDiv, IntExpr, Max, Min, Mod, Value, Var, evaluate, has_value, var, variables
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Cascade

LONGEST_SCAN = 256
"""Steps of a scan that are written out one after the other."""


class NotInTorch(Unsupported):
    """An Einsum that the translation to torch does not cover, or a back end made from it."""

    code = "DLC0690"
    template = "not supported: '{tensor}' for backend='{backend}' because {reason}"
    hint = "backend='dlc' compiles it"


_TYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
}  # fmt: skip

_UNARY: dict[str, Callable[[Any], Any]] = {
    "not": lambda a: torch.logical_not(a) if a.dtype == torch.bool else torch.bitwise_not(a),
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sgn, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc,
    "round": torch.round, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "exp": torch.exp, "exp2": torch.exp2,
    "expm1": torch.expm1, "log": torch.log, "log2": torch.log2, "log1p": torch.log1p, "sin": torch.sin, "cos": torch.cos,
    "tan": torch.tan, "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "sinh": torch.sinh, "cosh": torch.cosh,
    "tanh": torch.tanh, "asinh": torch.asinh, "acosh": torch.acosh, "atanh": torch.atanh, "erf": torch.erf,
    "sigmoid": torch.sigmoid, "isnan": torch.isnan, "isinf": torch.isinf, "signbit": torch.signbit, "lgamma": torch.lgamma,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "min": torch.minimum, "max": torch.maximum,
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
    "atan2": torch.atan2, "copysign": torch.copysign,
}  # fmt: skip
_LOGIC = {
    "and": (torch.logical_and, torch.bitwise_and),
    "or": (torch.logical_or, torch.bitwise_or),
    "xor": (torch.logical_xor, torch.bitwise_xor),
}
_ROUNDING = {"div_trunc": "trunc", "div_floor": "floor", "rem_trunc": "trunc", "rem_floor": "floor"}


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor and the rank of each of its dimensions."""

    tensor: Any
    ranks: tuple[str, ...]


class CascadeModule(torch.nn.Module):
    """A cascade with its extents, and constants for some of its parameters.

    `forward` takes the other parameters and returns the results, then whether all indices were inside.

    Args:
        symbols: value of each extent symbol (with `#`).
        constants: arrays by parameter.
        backend: for messages.
    """

    def __init__(
        self, cascade: Cascade, symbols: Mapping[str, int], constants: Mapping[str, Any], backend: str = "torch"
    ) -> None:
        super().__init__()
        self.cascade, self.symbols, self.backend = cascade, dict(symbols), backend
        self.inputs = tuple(p.name for p in cascade.params if p.name not in constants)
        self.held = tuple(constants)
        for p in cascade.params:
            if p.type.dtype.name not in _TYPES:
                reason = f"torch computes with no {p.type.dtype}"
                raise NotInTorch(cascade.loc, tensor=p.name, backend=backend, reason=reason)
        for number, array in enumerate(constants.values()):
            self.register_buffer(f"held_{number}", tensor_of(array))

    def forward(self, *given: Any) -> tuple[Any, ...]:
        env = dict(zip(self.inputs, given, strict=True))
        env.update({name: getattr(self, f"held_{n}") for n, name in enumerate(self.held)})
        run = _Run(env, self.symbols, self.backend)
        for step in self.cascade.steps:
            run.step(step)
        inside = run.checks[0] if run.checks else torch.ones((), dtype=torch.bool)
        for more in run.checks[1:]:
            inside = torch.logical_and(inside, more)
        return (*(env[r].contiguous() for r in self.cascade.results), inside)


def refuse_early(cascade: Cascade, backend: str) -> None:
    """Raise `NotInTorch` now where running `CascadeModule` would; nothing is computed, extents of inputs are small."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    extents = [e for p in cascade.params for e in p.type.shape] + [r.extent for s in flat(cascade.steps) for r in s.all_ranks]
    least = {f"#{s.name}": s.lo for s in cascade.symbols}
    symbols = {n: max(2, least.get(n, 0)) for e in extents for n in variables(e) if n.startswith("#")}
    with torch.no_grad(), FakeTensorMode():
        module = CascadeModule(cascade, symbols, {}, backend)
        given = [torch.empty([int(evaluate(e, symbols)) for e in p.type.shape], dtype=_TYPES[p.type.dtype.name]) for p in cascade.params]
        try:
            module(*given)
        except NotInTorch:
            raise
        except Exception:  # extents that were made up need not fit one another
            return


def tensor_of(array: Any) -> torch.Tensor:
    """The array as a tensor, bf16 included."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


class _Run:
    """The steps, one after the other, on tensors by name."""

    def __init__(self, env: dict[str, Any], symbols: Mapping[str, int], backend: str) -> None:
        self.env, self.fixed, self.backend = env, dict(symbols), backend
        self.checks: list[Any] = []
        self.at: Einsum | Scan | None = None
        self.sizes: dict[str, int] = {}
        self.guarded = False

    def refuse(self, reason: str) -> NotInTorch:
        assert self.at is not None
        return NotInTorch(self.at.loc, tensor=self.at.outs[0], backend=self.backend, reason=reason)

    def kind(self, dtype: DType) -> Any:
        if dtype.name not in _TYPES:
            raise self.refuse(f"torch computes with no {dtype}")
        return _TYPES[dtype.name]

    def size(self, e: IntExpr) -> int:
        return max(0, int(evaluate(e, self.fixed)))

    # --- steps ---

    def step(self, step: Step) -> None:
        self.at = step
        if isinstance(step, Scan):
            self.scan(step)
            return
        self.sizes = {r.name: self.size(r.extent) for r in step.all_ranks}
        free = tuple(r.name for r in step.ranks)
        if step.write is not None:
            self.env[step.out] = self.scatter(step, free)
            return
        for name, value, dtype in zip(step.outs, self.values(step, free), step.dtypes, strict=True):
            self.env[name] = self.laid_out(value, free).to(self.kind(dtype))

    def scan(self, scan: Scan) -> None:
        count = self.size(scan.rank.extent)
        if not 0 < count <= LONGEST_SCAN:
            raise self.refuse(f"it is a scan of {count} steps, and 1 to {LONGEST_SCAN} are written out")
        self.env.update({c.name: self.env[c.init] for c in scan.carries})
        rows: dict[str, list[Any]] = {outer: [] for outer, _ in scan.stacked}
        for t in range(count):
            self.fixed[scan.rank.name] = t
            for step in scan.body:
                self.step(step)
            for outer, inner in scan.stacked:
                rows[outer].append(self.env[inner])
            following = [self.env[y] for y in scan.yields]
            self.env.update(zip((c.name for c in scan.carries), following, strict=True))
        del self.fixed[scan.rank.name]
        self.env.update((f, self.env[c.name]) for f, c in zip(scan.finals, scan.carries, strict=True))
        self.env.update((outer, torch.stack(parts)) for outer, parts in rows.items())

    def values(self, step: Einsum, free: tuple[str, ...]) -> list[Named]:
        self.guarded = step.where is not None
        exists = None if step.where is None else self.value(step.where)
        if step.reduce is None:
            return [self.value(e) for e in step.exprs]
        folded = tuple(r.name for r in step.reduced)
        if exists is None and step.reduce.op == "sum":
            product = self.product(step, free)
            if product is not None:
                return [product]
        values = [self.value(e) for e in step.exprs]
        order = (*free, *folded)
        accumulators = [step.reduce.accumulator or default_accumulator(t) for t in step.dtypes]
        identities = MONOIDS[step.reduce.op].identity(tuple(accumulators))
        wide = []
        for value, dtype, identity in zip(values, accumulators, identities, strict=True):
            t = self.laid_out(value, order).to(self.kind(dtype))
            if exists is not None:
                t = torch.where(self.laid_out(exists, order), t, torch.tensor(identity.value, dtype=t.dtype))
            wide.append(t.reshape(*t.shape[: len(free)], -1))
        return [Named(t, free) for t in self.fold(step.reduce.op, wide)]

    def fold(self, op: str, values: list[Any]) -> list[Any]:
        """The last dimension of each component folded away."""
        x = values[0]
        match op:
            case "sum" if x.dtype != torch.bool:
                return [x.sum(-1, dtype=x.dtype)]
            case "prod" if x.dtype != torch.bool:
                return [x.prod(-1, dtype=x.dtype)]
            case "max" | "min" if x.shape[-1]:
                if x.dtype == torch.bool:
                    return [x.any(-1) if op == "max" else x.all(-1)]
                return [x.amax(-1) if op == "max" else x.amin(-1)]
            case "and" | "or" if x.dtype == torch.bool:
                return [x.all(-1) if op == "and" else x.any(-1)]
            case "argmax" | "argmin" if x.shape[-1]:
                best = x.amax(-1, keepdim=True) if op == "argmax" else x.amin(-1, keepdim=True)
                is_best = (
                    torch.where(torch.isnan(best), torch.isnan(x), x == best) if x.is_floating_point() else x == best
                )
                first = is_best.to(torch.int32).argmax(-1, keepdim=True)
                return [best.squeeze(-1), torch.gather(values[1], -1, first).squeeze(-1)]
            case _:
                raise self.refuse(f"it folds {x.shape[-1]} values of {x.dtype} with '{op}'")

    def scatter(self, step: Einsum, free: tuple[str, ...]) -> Any:
        """Written through a flat index; what is left out goes to one element more."""
        write = step.write
        assert write is not None
        onto = self.env[write.onto]
        (value,) = self.values(replace(step, write=None), free)
        source = self.laid_out(value, free).to(onto.dtype).reshape(-1)
        exists = None if step.where is None else self.laid_out(self.value(step.where), free)
        flat: Any = torch.zeros((), dtype=torch.int64)
        for i, n in zip(write.index, onto.shape, strict=True):
            index = self.laid_out(self.index(i), free)
            is_in = torch.logical_and(index >= 0, index < int(n))
            if write.drop:
                exists = is_in if exists is None else torch.logical_and(exists, is_in)
            elif exists is None:
                self.checks.append(is_in.all())
            else:
                self.checks.append(torch.logical_or(is_in, torch.logical_not(exists)).all())
            flat = flat * int(n) + index.clamp(0, max(int(n) - 1, 0))
        count = onto.numel()
        if exists is not None:
            flat = torch.where(exists, flat, torch.full_like(flat, count))
        written = self.written(write.op, torch.cat([onto.reshape(-1), onto.new_zeros(1)]), flat.reshape(-1), source)
        return written[:count].reshape(onto.shape)

    def written(self, op: str, onto: Any, flat: Any, source: Any) -> Any:
        match op:
            case "sum":
                return onto.index_add(0, flat, source)
            case "set":  # the last one wins
                order = torch.arange(source.shape[0], dtype=torch.int64)
                last = torch.full(onto.shape, -1, dtype=torch.int64).scatter_reduce(0, flat, order, "amax")
                return torch.where(last >= 0, torch.index_select(source, 0, last.clamp(0)), onto)
            case _:
                how = {"prod": "prod", "max": "amax", "min": "amin"}[op]
                return onto.scatter_reduce(0, flat, source, how)

    # --- sums of products ---

    def product(self, step: Einsum, free: tuple[str, ...]) -> Named | None:
        """The sum as a convolution or `einsum` of its factors; None where it is another sum."""
        factors = _factors(step.expr)
        dtype = step.dtypes[0]
        plain = [f for f in factors if isinstance(f, Access)]
        if len(factors) < 2 or len(plain) < len(factors) or not dtype.is_float or step.reduce is None:
            return None
        if step.reduce.accumulator not in (None, default_accumulator(dtype)):
            return None
        if any(self.env[a.tensor].dtype != _TYPES.get(dtype.name) for a in plain):
            return None
        shapes = {a.tensor: tuple(self.env[a.tensor].shape) for a in plain}
        found = find_convolution(step, plain, shapes, self.sizes, self.fixed)
        if found is not None:
            return Named(found.run(self.env), found.ranks)
        values = [self.value(f) for f in plain]
        names = sorted({r for v in values for r in v.ranks})
        missing = [n for n in (*free, *(r.name for r in step.reduced)) if n not in names]
        if len(names) > 52 or missing:
            return None
        letter = {n: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[k] for k, n in enumerate(names)}
        spec = ",".join("".join(letter[r] for r in v.ranks) for v in values) + "->" + "".join(letter[n] for n in free)
        return Named(torch.einsum(spec, *(v.tensor for v in values)), free)

    # --- expressions ---

    def value(self, e: Expr) -> Named:
        match e:
            case Const(number, dtype):
                return Named(torch.tensor(number, dtype=self.kind(dtype)), ())
            case Index(expr):
                return self.index(expr)
            case Access():
                return self.access(e)
            case Apply(op, args):
                return self.apply(op, [self.value(a) for a in args])
            case Cast(dtype, arg, mode):
                v = self.value(arg)
                return Named(self.cast(v.tensor, dtype, mode), v.ranks)
            case Bitcast(dtype, arg):
                v = self.value(arg)
                return Named(v.tensor.view(self.kind(dtype)), v.ranks)
            case Piecewise(cases, otherwise):
                before, self.guarded = self.guarded, True
                result = self.value(otherwise)
                for guard, value in reversed(cases):
                    result = self.apply("select", [self.value(guard), self.value(value), result])
                self.guarded = before
                return result

    def apply(self, op: str, args: list[Named]) -> Named:
        ranks = tuple(dict.fromkeys(r for a in args for r in a.ranks))
        tensors = [self.aligned(a, ranks) for a in args]
        return Named(self.scalar(op, tensors), ranks)

    def scalar(self, op: str, args: list[Any]) -> Any:
        if op == "select":
            return torch.where(args[0], args[1], args[2])
        if op in _UNARY:
            return _UNARY[op](args[0])
        if op in _BINARY:
            if args[0].dtype == torch.bool and op in ("min", "max"):
                return (torch.logical_and if op == "min" else torch.logical_or)(*args)
            return _BINARY[op](*args)
        if op in _LOGIC:
            return _LOGIC[op][args[0].dtype != torch.bool](*args)
        if op in ("rem_trunc", "rem_floor") and args[0].is_floating_point():
            return (torch.fmod if op == "rem_trunc" else torch.remainder)(*args)
        if op == "pow" and args[0].is_floating_point():
            return torch.pow(*args)
        if op in _ROUNDING and not args[0].is_floating_point():
            by = torch.where(args[1] == 0, torch.ones_like(args[1]), args[1])
            quotient = torch.div(args[0], by, rounding_mode=_ROUNDING[op])
            result = quotient if op.startswith("div") else args[0] - quotient * by
            return torch.where(args[1] == 0, torch.zeros_like(result), result)
        raise self.refuse(f"of the operator '{op}'")

    def cast(self, x: Any, dtype: DType, mode: str) -> Any:
        kind = self.kind(dtype)
        if dtype == BOOL:
            return x != 0
        if x.is_floating_point() and dtype.is_int:
            if mode != "sat":
                raise self.refuse(f"it converts floats to {dtype} with wrap-around")
            whole = torch.nan_to_num(x.double(), nan=0.0, posinf=np.inf, neginf=-np.inf).trunc()
            if dtype.bits <= 32:
                return whole.clamp(float(dtype.lowest), float(dtype.highest)).to(kind)
            most = torch.tensor(dtype.highest, dtype=kind)
            return torch.where(whole >= 2.0**63, most, whole.clamp(-(2.0**63), float(2**63 - 1024)).to(kind))
        return x.to(kind)

    # --- indices ---

    def index(self, e: IntExpr) -> Named:
        """The values of an integer expression over the ranks in it."""
        ranks = tuple(n for n in self.sizes if n in self.names_in(e))
        if not has_value(e):
            return Named(torch.from_numpy(self.grid(e, ranks)), ranks)
        parts: Named | None = None
        for monomial, coefficient in e.terms:
            term = Named(torch.tensor(coefficient, dtype=torch.int64), ())
            for atom in monomial:
                term = self.apply("mul", [term, self.index_atom(atom)])
            parts = term if parts is None else self.apply("add", [parts, term])
        assert parts is not None
        return parts

    def index_atom(self, atom: Any) -> Named:
        match atom:
            case Var(name):
                return self.index(var(name)) if name in self.sizes else Named(torch.tensor(self.fixed[name]), ())
            case Value(expr):
                v = self.value(expr)
                return Named(v.tensor.to(torch.int64), v.ranks)
            case FloorDiv(num, den):
                return self.apply("div_floor", [self.index(num), self.index(den)])
            case Mod(num, den):
                return self.apply("rem_floor", [self.index(num), self.index(den)])
            case Min(args) | Max(args):
                found = self.index(args[0])
                for more in args[1:]:
                    found = self.apply("min" if isinstance(atom, Min) else "max", [found, self.index(more)])
                return found
        raise self.refuse(f"of the index {atom}")

    def names_in(self, e: IntExpr) -> frozenset[str]:
        return frozenset(variables(e))

    def grid(self, e: IntExpr, ranks: tuple[str, ...]) -> Any:
        """The expression's values as an array over `ranks`."""
        env: dict[str, Any] = dict(self.fixed)
        for d, name in enumerate(ranks):
            shape = [1] * len(ranks)
            shape[d] = self.sizes[name]
            env[name] = np.arange(self.sizes[name], dtype=np.int64).reshape(shape)
        return np.array(np.broadcast_to(np.asarray(evaluate(e, env), np.int64), [self.sizes[n] for n in ranks]))

    def inside(self, index: Any, size: int) -> None:
        """Note whether all of an index that a tensor holds is inside."""
        if not self.guarded:
            self.checks.append(torch.logical_and(index >= 0, index < size).all())

    def access(self, a: Access) -> Named:
        x = self.env[a.tensor]
        before, self.guarded = self.guarded, self.guarded or a.default is not None
        own = [tuple(n for n in self.sizes if n in self.names_in(i)) for i in a.index]
        apart = sum(map(len, own)) == len({n for names in own for n in names})
        if apart and not any(map(has_value, a.index)):
            found, mask = self.by_dimensions(x, a, own)
        else:
            found, mask = self.by_index(x, a)
        self.guarded = before
        if a.default is None or mask is None:
            return found
        return self.apply("select", [mask, found, self.value(a.default)])

    def by_dimensions(self, x: Any, a: Access, own: list[tuple[str, ...]]) -> tuple[Named, Named | None]:
        """Dimension by dimension: each uses ranks of its own."""
        ranks: tuple[str, ...] = ()
        mask: Named | None = None
        for d in range(len(a.index) - 1, -1, -1):
            at, size = self.grid(a.index[d], own[d]), int(x.shape[d])
            is_in = (at >= 0) & (at < size)
            if not is_in.all():
                part = Named(torch.from_numpy(is_in), own[d])
                mask = part if mask is None else self.apply("and", [mask, part])
                at = at.clip(0, max(size - 1, 0))
            if not at.size or np.array_equal(at.reshape(-1), np.arange(size)):
                flat = x if at.size else x.narrow(d, 0, 0)
            elif not size:
                raise self.refuse("it reads a tensor of no elements")
            else:
                flat = self.picked(x, d, at.reshape(-1))
            x = flat.reshape((*x.shape[:d], *at.shape, *flat.shape[d + 1 :]))
            ranks = own[d] + ranks
        return Named(x, ranks), mask

    def picked(self, x: Any, d: int, at: Any) -> Any:
        """`x` at the indices of dimension `d`: a slice where they are evenly spaced."""
        steps = np.diff(at)
        if at.size == 1 or (steps[0] > 0 and (steps == steps[0]).all()):
            step = int(steps[0]) if at.size > 1 else 1
            return x[(slice(None),) * d + (slice(int(at[0]), int(at[-1]) + 1, step),)]
        return torch.index_select(x, d, torch.from_numpy(at))

    def by_index(self, x: Any, a: Access) -> tuple[Named, Named | None]:
        """Element by element, through index tensors over all ranks that occur."""
        indices = [self.index(i) for i in a.index]
        ranks = tuple(dict.fromkeys(r for i in indices for r in i.ranks))
        mask: Named | None = None
        flat: Any = torch.zeros((), dtype=torch.int64)
        for i, n in zip(indices, x.shape, strict=True):
            at, size = self.aligned(i, ranks), int(n)
            if not size:
                raise self.refuse("it reads a tensor of no elements")
            if a.default is not None:
                is_in = Named(torch.logical_and(at >= 0, at < size), ranks)
                mask = is_in if mask is None else self.apply("and", [mask, is_in])
            else:
                self.inside(at, size)
            flat = flat * size + at.clamp(0, size - 1)
        taken = torch.index_select(x.reshape(-1), 0, flat.reshape(-1))
        return Named(taken.reshape(flat.shape), ranks), mask

    # --- dimensions ---

    def aligned(self, v: Named, ranks: tuple[str, ...]) -> Any:
        """The tensor with a dimension for each of `ranks`, of extent 1 where it has none."""
        have = [r for r in ranks if r in v.ranks]
        t = v.tensor.permute([v.ranks.index(r) for r in have]) if len(have) > 1 else v.tensor
        for d, r in enumerate(ranks):
            if r not in v.ranks:
                t = t.unsqueeze(d)
        return t

    def laid_out(self, v: Named, ranks: tuple[str, ...]) -> Any:
        """The tensor over exactly `ranks`."""
        return self.aligned(v, ranks).expand([self.sizes[r] for r in ranks])


def _factors(e: Expr) -> list[Expr]:
    match e:
        case Apply("mul", (a, b)):
            return _factors(a) + _factors(b)
        case _:
            return [e]
