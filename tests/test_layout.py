"""The house rules that a machine can check: who imports whom, links, error codes, length of files."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("frontend", "ir", "passes", "codegen", "costmodel", "runtime")
MAY_IMPORT = {
    "ir": {"errors"},
    "frontend": {"ir", "errors"},
    "passes": {"ir", "costmodel", "errors"},
    "codegen": {"ir", "costmodel", "errors"},
    "costmodel": {"ir", "errors"},
    "runtime": {"errors"},
}
MLIR_ONLY_IN = "codegen/native.py"
LONGEST_FILE = 700


def sources(stage: str) -> list[Path]:
    return sorted((ROOT / stage).rglob("*.py"))


def all_sources() -> list[Path]:
    return [f for stage in STAGES for f in sources(stage)] + sorted((ROOT / "src/dlc").glob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a file imports, `if TYPE_CHECKING:` and function bodies included."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "dlc":
                for alias in node.names:
                    yield node.lineno, f"dlc.{alias.name}"
            else:
                yield node.lineno, node.module or ""


def test_stage_links_are_there() -> None:
    for stage in STAGES:
        link = ROOT / "src/dlc" / stage
        assert link.is_symlink() and link.resolve() == ROOT / stage, (
            f"src/dlc/{stage} is not a symbolic link to ../../{stage}. If this checkout has plain files there, your "
            "system or git made no symbolic links (Windows' default): run `git config core.symlinks true`, "
            "allow them, and check out again."
        )


@pytest.mark.parametrize("stage", STAGES)
def test_stage_imports_only_what_it_may(stage: str) -> None:
    wrong = []
    for file in sources(stage):
        for line, name in imports(file):
            parts = name.split(".")
            if name.startswith("."):
                wrong.append(f"{file.relative_to(ROOT)}:{line}: relative import {name}; write dlc.{stage}...")
            elif parts[0] in STAGES:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: import dlc.{name}, not {name}")
            elif parts[0] == "dlc" and len(parts) > 1 and parts[1] not in MAY_IMPORT[stage] | {stage}:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {stage} must not import {name}")
            elif parts[0] == "dlc" and len(parts) == 1:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {stage} must not import dlc as a whole")
    assert not wrong, "\n".join(wrong)


def test_mlir_is_imported_in_one_module() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: imports {name}"
        for file in all_sources()
        if str(file.relative_to(ROOT)) != MLIR_ONLY_IN
        for line, name in imports(file)
        if name.split(".")[0] == "mlir"
    ]
    assert not wrong, "\n".join(wrong)


def test_runtime_needs_numpy_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "dlc"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: imports {name}"
        for file in [*sources("runtime"), ROOT / "src/dlc/errors.py", ROOT / "src/dlc/__init__.py"]
        for line, name in imports(file)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_runtime_imports_no_compiler() -> None:
    names = [m.name for m in pkgutil.iter_modules([str(ROOT / "runtime")])]
    code = (
        "import sys, dlc, dlc.errors, dlc.runtime\n"
        f"for name in {names}: __import__('dlc.runtime.' + name)\n"
        "heavy = {'torch', 'onnx', 'mlir', 'lark', 'ml_dtypes', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr


def test_importing_dlc_is_cheap() -> None:
    code = "import sys, dlc\nassert 'numpy' not in sys.modules and 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr


def test_no_file_outgrows_a_reader() -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for file in all_sources()
        if (count := len(file.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long, f"more than {LONGEST_FILE} lines, look for a natural seam: {long}"


def test_every_file_says_what_it_is() -> None:
    silent = [str(f.relative_to(ROOT)) for f in all_sources() if not ast.get_docstring(ast.parse(f.read_text()))]
    assert not silent, f"no docstring at the top: {silent}"


def declared_codes() -> list[tuple[str, str, str, str | None]]:
    """(code, class, file:line, template) of every error class in the source, found without importing it."""
    found = []
    for file in all_sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            values: dict[str, str] = {}
            for statement in node.body:
                target = None
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    target, value = statement.targets[0].id, statement.value
                elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    target, value = statement.target.id, statement.value
                if target in {"code", "template"} and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    values[target] = value.value
            if values.get("code", "").startswith("DLC"):
                where = f"{file.relative_to(ROOT)}:{node.lineno}"
                found.append((values["code"], node.name, where, values.get("template")))
    return found


def test_error_codes_are_unique_and_well_formed() -> None:
    seen: dict[str, str] = {}
    wrong = []
    for code, name, where, template in declared_codes():
        if not re.fullmatch(r"DLC\d{4}", code):
            wrong.append(f"{where}: {name}: code {code} is not DLC and four digits")
        if code in seen:
            wrong.append(f"{where}: {name}: code {code} is already that of {seen[code]}")
        if template is None:
            wrong.append(f"{where}: {name}: a code needs a template of its own")
        seen[code] = f"{name} ({where})"
    assert not wrong, "\n".join(wrong)


def test_registry_refuses_a_taken_code() -> None:
    from dlc.errors import DlcError, Unsupported

    importlib.import_module("dlc.errors")
    with pytest.raises(TypeError, match="already that of Unsupported"):
        type("Twin", (DlcError,), {"code": Unsupported.code, "template": "x"})
