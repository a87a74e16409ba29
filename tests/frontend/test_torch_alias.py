"""Writes in place to tensors that are one memory on some paths: random programs that do little else, eager PyTorch as the judge."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlc.frontend.torch_alias import aliases
from dlc.frontend.torch_capture import AsExported, capture
from dlc.frontend.torch_export import import_torch
from tests.frontend.torch_case import Fn, close, run

NAMES = ("a", "b", "c")
CONDITIONS = ("x[0] > 0", "x.sum() > 0", "a.sum() > b.sum()", "c[1] > 0.25", "b.max() < 1", "k == 1", "k > 1")
INPUTS = tuple(
    (torch.tensor(v), torch.tensor(k))
    for v in ([0.5, -1.0, 2.0], [-0.5, 1.0, 0.25], [1.5, 0.5, -2.5], [-1.0, -0.25, -0.5])
    for k in (0, 1, 2)
)


def statements(r: random.Random, depth: int, indent: str) -> Iterator[str]:
    for _ in range(r.randint(1, 3)):
        p, q = r.choice(NAMES), r.choice(NAMES)
        if depth and r.random() < 0.4:
            condition = r.choice(CONDITIONS)
            kind = r.choice(("if", "if", "else", "while", "for"))
            if kind in ("if", "else"):
                yield f"{indent}if {condition}:"
                yield from statements(r, depth - 1, indent + "    ")
                if kind == "else":
                    yield f"{indent}else:"
                    yield from statements(r, depth - 1, indent + "    ")
                continue
            n = f"n{depth}"
            if kind == "while":
                yield f"{indent}{n} = 0"
                yield f"{indent}while {n} < 3 and {condition}:"
                yield f"{indent}    {n} += 1"
            else:
                yield f"{indent}for {n} in range(k.item() + 1):"
            yield from statements(r, depth - 1, indent + "    ")
            continue
        yield indent + r.choice((
            f"{p} = {q}", f"{p} = {q}", f"{p} = {q}", f"a, b, c = {r.choice(('b, c, a', 'c, a, b', 'b, a, c', 'a, a, b'))}",
            f"{p} = {q} * 0.5 + 0.25", f"{p} += 0.5", f"{p}.mul_(0.5).add_({q})", f"{p}[1] = {q}[0] + 1", f"{p}[:2] = {q}[1:] * 0.5",
            f"{p}.copy_({q})", f"{p} = {q}.view(3)", f"{p} = (a, b, c)[k.item()]", "(a, b, c)[k.item() - 1].sub_(1)",
            f"{p} = {q} if {r.choice(CONDITIONS)} else {r.choice(NAMES)}",
        ))  # fmt: skip


def source(seed: int) -> str:
    r = random.Random(seed)
    lines = ["def program(x, k):", "    a = x * 1", "    b = x - 0.75", "    c = a"]
    for _ in range(2):
        lines += statements(r, 2, "    ")
    return "\n".join([*lines, "    return a, b, c", ""])


def load(text: str, folder: Path, name: str) -> Any:
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.program


def holds(seed: int, folder: Path) -> bool:
    """Whether the program of a seed needs to know at run time which memory a tensor is; it must do what eager does."""
    program = load(source(seed), folder, f"alias_{seed}")
    model = Fn(program).eval()
    imported = import_torch(model, INPUTS[0])
    for given in INPUTS:
        want = program(*(v.clone() for v in given))
        for g, w in zip(run(imported, given), want, strict=True):
            close(g, w, f"seed {seed}, {given}\n{source(seed)}")
    return bool(_followed(model))


def _followed(model: nn.Module) -> int:
    return len(aliases(AsExported(capture(model, INPUTS[0])).graph.nodes).reached)


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 40, 60))])
def test_every_name_of_a_written_memory_shows_the_write(first, tmp_path):
    followed = [holds(seed, tmp_path) for seed in range(first, first + 20)]
    assert sum(followed) >= 8  # else the programs are about something else
