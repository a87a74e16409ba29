"""Inputs for a compiled model: from files, or random ones that fit its manifest; outputs into files.

An .npz file holds inputs by name (`np.savez(file, x=..., mask=...)`) or by position (`np.savez(file, a, b)` makes
arr_0, arr_1); an .npy file is the one input.  Random floats are standard normal; random integers come from a small
range, since they are mostly indices (`--int-range`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dlc.errors import BadInput


class BadFeed(BadInput):
    """An input file does not fit the model."""

    code = "DLC0620"
    template = "the inputs in '{path}' do not fit: {reason}"
    hint = "the model takes {inputs}"


class BadSymbol(BadInput):
    """A --symbol option names no symbol, or a value outside its range."""

    code = "DLC0621"
    template = "--symbol {given}: {reason}"
    hint = "the symbols are: {known}"


def signature(manifest: Mapping[str, Any]) -> str:
    """The inputs as text: `ids: i64[b, s], mask: f32[b, s]`."""
    return ", ".join(
        f"{i['name']}: {i['dtype']}[{', '.join(str(d) for d in i['shape'])}]" for i in manifest.get("inputs", ())
    )


def symbol_values(manifest: Mapping[str, Any], given: Sequence[str] = ()) -> dict[str, int]:
    """A value for each symbol the inputs bind: the given ones (`b=3`), else a small one within its range."""
    facts = {s["name"]: s for s in manifest.get("symbols", ()) if not s.get("dynamic")}
    known = ", ".join(f"{n} in {f.get('lo', 0)}..{_top(f)}" for n, f in facts.items()) or "none"
    values = {name: _usual(fact) for name, fact in facts.items()}
    for text in given:
        name, _, number = text.partition("=")
        if name not in facts or not number.isascii() or not number.isdigit():
            raise BadSymbol(given=text, reason="write NAME=VALUE with a name of the model", known=known)
        value, fact = int(number), facts[name]
        too_large = fact.get("hi") is not None and value > fact["hi"]
        if value < fact.get("lo", 0) or too_large or value % fact.get("divisor", 1):
            raise BadSymbol(given=text, reason="the model does not allow that value", known=known)
        values[name] = value
    return values


def random_inputs(
    manifest: Mapping[str, Any],
    *,
    symbols: Mapping[str, int],
    seed: int = 0,
    int_range: tuple[int, int] = (0, 2),
) -> list[np.ndarray]:
    """One array per input of the manifest, equal for equal seeds.

    Args:
        manifest: `exe.manifest`.
        symbols: values of the symbols in the shapes.
        seed: of the generator.
        int_range: first and one past the last value of random integers.
    """
    from dlc.runtime.expr import compile_expressions

    generator = np.random.default_rng(seed)
    names = list(symbols)
    arrays = []
    for entry in manifest["inputs"]:
        shape = compile_expressions(entry["shape"], names)(*symbols.values()) if entry["shape"] else ()
        arrays.append(_random(generator, entry["dtype"], tuple(int(d) for d in shape), int_range))
    return arrays


def load_inputs(path: str | Path, manifest: Mapping[str, Any]) -> list[np.ndarray]:
    """The inputs a file holds, in the order of the manifest.

    Raises:
        BadFeed: it is no .npz or .npy file, or the names or the number of arrays do not fit.
    """
    wanted = [i["name"] for i in manifest["inputs"]]
    arrays = load_arrays(path, signature(manifest))
    if len(arrays) == len(wanted) and not set(arrays) <= set(wanted):
        return list(arrays.values())
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    if missing or unknown:
        reason = "; ".join(
            f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
        )
        raise BadFeed(path=path, reason=reason, inputs=signature(manifest))
    return [arrays[name] for name in wanted]


def load_arrays(path: str | Path, inputs: str = "arrays") -> dict[str, np.ndarray]:
    """All arrays of an .npz (by name) or .npy file (as `value`); nothing in it is executed."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"value": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadFeed(path=path, reason=f"it is no .npz or .npy file ({error})", inputs=inputs) from error


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file (or .npy, for one array and that suffix) whose order is the mapping's."""
    path = Path(path)
    if path.suffix == ".npy" and len(arrays) == 1:
        np.save(path, next(iter(arrays.values())), allow_pickle=False)
        return
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def call_arguments(manifest: Mapping[str, Any], arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, from its inputs in their order."""
    tree = manifest.get("in_tree")
    if tree is None:
        return tuple(arrays), {}
    args, kwargs = _nest(tree, arrays)
    return tuple(args), dict(kwargs)


def _nest(tree: Mapping[str, Any], leaves: Sequence[Any]) -> Any:
    children = [_nest(child, leaves) for child in tree.get("c", ())]
    match tree["t"]:
        case "leaf":
            return leaves[tree["i"]]
        case "tuple":
            return tuple(children)
        case "list":
            return children
        case "dict":
            return dict(zip(tree["k"], children))
        case "namedtuple":
            return SimpleNamespace(**dict(zip(tree["k"], children)))
        case "const":
            return tree.get("v")
        case _:
            return None


def flat_outputs(result: Any) -> list[np.ndarray]:
    """The arrays of a nested result, in the order of the model's outputs."""
    if result is None:
        return []
    if isinstance(result, Mapping):
        return [a for value in result.values() for a in flat_outputs(value)]
    if isinstance(result, tuple | list):
        return [a for value in result for a in flat_outputs(value)]
    if hasattr(result, "detach"):
        result = result.detach().float() if str(result.dtype) == "torch.bfloat16" else result.detach()
        return [result.cpu().numpy()]
    return [np.asarray(result)]


def summary(array: np.ndarray) -> dict[str, Any]:
    """What to print of an array: type, shape, range, mean, and how many values are not finite."""
    row: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype != bool and array.dtype.kind in "iufV":
        values = array.astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            row |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean())}
        if finite.size < values.size:
            row["not_finite"] = int(values.size - finite.size)
    return row


def _random(
    generator: np.random.Generator, dtype: str, shape: tuple[int, ...], int_range: tuple[int, int]
) -> np.ndarray:
    numpy_names = {"f64": "float64", "f32": "float32", "f16": "float16", "c64": "complex64", "c128": "complex128"}
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype in numpy_names:
        return np.asarray(generator.standard_normal(shape)).astype(numpy_names[dtype])
    if dtype == "bf16":
        bits = np.asarray(generator.standard_normal(shape)).astype(np.float32).view(np.uint32)
        return (bits >> 16).astype(np.uint16)
    name = ("uint" if dtype[0] == "u" else "int") + dtype[1:]
    return generator.integers(int_range[0], max(int_range[1], int_range[0] + 1), shape).astype(name)


def _usual(fact: Mapping[str, Any]) -> int:
    divisor = int(fact.get("divisor", 1))
    value = max(int(fact.get("lo", 0)), 16)
    value = min(value, int(fact["hi"])) if fact.get("hi") is not None else value
    value -= value % divisor
    return value if value >= fact.get("lo", 0) else value + divisor


def _top(fact: Mapping[str, Any]) -> str:
    by = f" by {fact['divisor']}" if fact.get("divisor", 1) != 1 else ""
    return f"{'' if fact.get('hi') is None else fact['hi']}{by}"
