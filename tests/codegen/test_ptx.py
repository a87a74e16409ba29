"""Kernels as PTX: what is written for each target, what ptxas says of it, what is refused."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlc import gpu
from dlc.cli import main
from dlc.codegen.gpu_targets import GPU_TARGETS
from dlc.codegen.ptx import PtxKernel, PtxRejected, assemble, ptx_kernel
from dlc.codegen.target import UnknownTarget, parse_target
from dlc.codegen.tile_parse import parse as parse_tile
from dlc.codegen.warp_to_mlir import NotForWarps
from dlc.ir.parser import parse_program

sys.path.insert(0, str(Path(__file__).parent))
from coded_layers import Case
from test_rows import SOFTMAX
from test_warp import CASCADES, OTHERS

CHECKED = "cascade c(X: f32[n, 4], I: i64[m]) -> (Z) {\n Z[m, k:4] = X[I[m], k]\n}"
SINE = "cascade c(X: f32[n]) -> (Z) {\n Z[n] = sin(X[n])\n}"


def kernels(text: str, target: str = "sm_80") -> list[PtxKernel]:
    return gpu.compile_ptx(parse_program(text), target=target)


def head(kernel: PtxKernel) -> str:
    """Up to the body of the function; its name is a digest of all that it does."""
    return kernel.ptx[: kernel.ptx.index("{")].replace(kernel.entry, "ENTRY")


@pytest.mark.parametrize("target", GPU_TARGETS)
def test_head(target: str, golden: Callable[..., None]) -> None:
    (kernel,) = kernels(SOFTMAX, target)
    golden(head(kernel))
    assert kernel.entry in kernel.ptx and kernel.ptx.count(".entry") == 1
    assert kernel.ptx.count("shfl.sync.idx") >= 20, "two folds of five rounds of two exchanges"
    assert "bar.warp.sync" in kernel.ptx


TEXTS = CASCADES | {name: text for name, (text, _) in OTHERS.items()}


@pytest.mark.parametrize("name", TEXTS)
def test_every_strategy_is_assembled(name: str) -> None:
    for target in GPU_TARGETS:
        for kernel in kernels(TEXTS[name], target):
            assert re.search(rf"^\.version 8\.0\n\.target {target}\n\.address_size 64$", kernel.ptx, re.M)
            assert (kernel.usage is None) == (shutil.which("ptxas") is None)
            assert kernel.usage is None or kernel.usage.registers > 0


@pytest.mark.parametrize(("weights", "activation"), [("i4", "i8"), ("u3", "f32"), ("i5", "i8"), ("f4e2m1", "bf16"), ("f8e4m3", "i8")])
def test_layers_of_few_bits(weights: str, activation: str) -> None:
    layer = Case(weights, activation, 1, 1, 64, 40, 32)
    made = gpu.compile_ptx(layer.program())
    decoding = next(k for k in made if "u8[" in str(k.whole) and "scale" not in k.name and len(k.whole.buffers) > 3)
    assert ".entry" in decoding.ptx and "x86" not in decoding.mlir
    unpacks = "unpack" in str(decoding.whole)
    assert unpacks == (weights in ("u3", "i5")), "whole codes of a byte need masks and shifts alone"
    assert "unpack" not in str(decoding.thread)


def test_a_check_reports_by_an_atomic(golden: Callable[..., None]) -> None:
    (kernel,) = kernels(CHECKED)
    golden(head(kernel))
    assert "atom" in kernel.ptx and ".cas.b64" in kernel.ptx


@pytest.mark.parametrize(("place", "whole"), [("128*t", True), ("128*t + 4", True), ("128*t + 2", False), ("#n", False)])
@pytest.mark.parametrize("target", GPU_TARGETS)
def test_lanes_of_a_thread_are_loaded_together_where_they_are_aligned(place: str, whole: bool, target: str) -> None:
    text = f"tile k(in a: u8[9999], out z: i32[999],) symbols(#n) task t in 2 {{\n x = load u8[x 128] a[{place} | 1]\n"
    program = parse_tile(f"{text} w = view<i32>(x)\n store z[32*t | 1] = w\n}}")
    loads = re.findall(r"ld\.global\S*", ptx_kernel("k", program, GPU_TARGETS[target]).ptx)
    assert loads == ["ld.global.b32"] if whole else len(loads) == 4 and all(x.endswith("8") for x in loads)


def test_what_needs_the_c_library_is_refused() -> None:
    with pytest.raises(NotForWarps) as caught:
        kernels(SINE)
    text = str(caught.value)
    assert "there is no GPU code for 'call of sinf' of kernel" in text and "there is no C library on the device" in text
    assert caught.value.exit_code == 3


def test_targets() -> None:
    with pytest.raises(UnknownTarget, match="unknown target 'sm_12'"):
        kernels(SOFTMAX, "sm_12")
    with pytest.raises(UnknownTarget, match="writes PTX"):
        parse_target("sm_80")


def test_without_ptxas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (kernel,) = kernels(CASCADES["points"])
    assert kernel.usage is None and gpu.facts(kernel)["ptxas"] is None
    assert gpu.usage_text(kernel) == "not assembled: no ptxas on PATH"


def fake_ptxas(folder: Path, script: str) -> None:
    file = folder / "ptxas"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_what_ptxas_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\nptxas info    : Used 40 registers, 388 bytes cmem[0]"
    fake_ptxas(tmp_path, f"echo '{said}' >&2")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (kernel,) = kernels(CASCADES["points"])
    assert gpu.facts(kernel)["ptxas"] == {"registers": 40, "spilled_bytes": 28}
    assert gpu.usage_text(kernel) == "40 registers, 12 bytes spilled, 16 read back"
    fake_ptxas(tmp_path, "echo \"$5, line 3; error : Unknown\" >&2; exit 255")
    with pytest.raises(PtxRejected, match=r"ptxas rejects kernel 'k': .*kernel\.\w+, line 3; error : Unknown"):
        assemble("k", "", GPU_TARGETS["sm_80"])


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas")
def test_ptxas_refuses_what_is_wrong() -> None:
    with pytest.raises(PtxRejected, match="ptxas rejects kernel 'k'"):
        assemble("k", ".version 8.0\n.target sm_80\nnonsense\n", GPU_TARGETS["sm_80"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = tmp_path / "rows.ein", tmp_path / "ptx"
    source.write_text(SOFTMAX)
    assert main(["compile", str(source), "--target", "sm_90", "-o", str(folder)]) == 0
    assert "1 kernels as PTX for sm_90, not run" in capsys.readouterr().out
    assert sorted(f.suffix for f in folder.iterdir()) == [".mlir", ".ptx", ".tile", ".tile"]
    (ptx,) = folder.glob("*.ptx")
    assert ".target sm_90" in ptx.read_text()
    source.write_text(SINE)
    assert main(["compile", str(source), "--target", "sm_80", "-o", str(folder)]) == 3
    assert "DLC0470" in capsys.readouterr().err
