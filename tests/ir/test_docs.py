"""docs/ir.md: its examples are valid, and its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlc.ir.parser import parse
from dlc.ir.reference import page
from dlc.ir.verify import verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ir.md"
TYPES = PAGE.with_name("types.md")
EXAMPLES = [
    text for p in (PAGE, TYPES) for text in re.findall(r"```ein\n(.*?)```", p.read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda t: t.split("(")[0].replace(" ", "_"))
def test_examples(text: str) -> None:
    made = parse(text)
    verify(made)  # type: ignore[arg-type]
    assert parse(str(made)) == made


def test_tables(request: pytest.FixtureRequest) -> None:
    current = PAGE.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page(current), encoding="utf-8")
    assert page(PAGE.read_text(encoding="utf-8")) == PAGE.read_text(encoding="utf-8")
