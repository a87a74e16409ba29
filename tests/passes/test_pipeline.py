"""Pipelines as text and back, their errors, and what observers see."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlc.errors import BadInput
from dlc.passes.observers import NumericCheck, Observer, PassChangedResult, PrintIR, Timer, difference_of
from dlc.passes.pipeline import (
    BadOption,
    BadPipeline,
    Event,
    Pass,
    PassCrashed,
    Pipeline,
    UnknownOption,
    UnknownPass,
)
from dlc.passes.registry import passes


@dataclass(frozen=True)
class Append(Pass):
    """Stands for a pass: its program is a text, and it appends to it."""

    name: ClassVar[str] = "append"
    text: str = ""
    times: int = 1


@dataclass(frozen=True)
class Options(Pass):
    name: ClassVar[str] = "every-option"
    flag: bool = False
    ratio: float = 0.5
    maybe: int | None = None
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Break(Pass):
    name: ClassVar[str] = "break"
    kind: str = "crash"

    def apply(self, program: Any) -> Any:
        if self.kind == "crash":
            raise ZeroDivisionError("a bug")
        raise BadOption(name="break", option="kind", wanted="peace", value=self.kind)


def append(self: Append, program: Any) -> Any:
    return program + self.text * self.times if self.text else program


Append.apply = append  # type: ignore[method-assign,assignment]
KNOWN = {p.name: p for p in (Append, Options, Break)}


def run(text: str, program: str = "p", observers: tuple[Observer, ...] = ()) -> Any:
    return Pipeline.parse(text, KNOWN).run(program, observers, verify=False)  # type: ignore[arg-type]


def test_reads_what_it_prints() -> None:
    text = "append{text=a times=3},every-option{flag=true maybe=7 mode=exact sizes=[1,2]},append"
    pipeline = Pipeline.parse(text, KNOWN)
    assert str(pipeline) == text
    assert pipeline.passes[1] == Options(flag=True, maybe=7, mode="exact", sizes=(1, 2))
    assert run("append{text=a times=3},append{text=b}") == "paaab"
    assert Pipeline.parse(" append{ text = 'a b', times=2 } , append ", KNOWN).passes[0] == Append("a b", 2)
    assert Pipeline.parse("", KNOWN) == Pipeline()


@given(
    st.lists(
        st.builds(Append, st.text("ab{} ,=none[]", max_size=4).filter(lambda t: "}" not in t), st.integers())
        | st.builds(
            Options,
            st.booleans(),
            st.floats(allow_nan=False),
            st.none() | st.integers(),
            st.sampled_from(["fast", "exact"]),
            st.lists(st.integers()).map(tuple),
        )
    )
)
def test_any_pipeline_reads_what_it_prints(steps: list[Pass]) -> None:
    pipeline = Pipeline(tuple(steps))
    assert Pipeline.parse(str(pipeline), KNOWN) == pipeline


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("appendd", UnknownPass, "did you mean 'append'? the passes are: append, break, every-option"),
        ("append{tims=2}", UnknownOption, "did you mean 'times'? its options are: text (text"),
        ("append{times=two}", BadOption, "option 'times' of pass 'append' takes an integer, not 'two'"),
        ("every-option{mode=slow}", BadOption, "takes fast or exact, not 'slow'"),
        ("every-option{flag=2}", BadOption, "takes true or false"),
        ("append{times=2", BadPipeline, "'{' after 'append' is not closed"),
        ("append append", BadPipeline, "expected ',' or the end at 'append'"),
        ("append,", BadPipeline, "it ends with a comma"),
        ("append{2}", BadPipeline, "options of 'append' are key=value, not '2'"),
        (",append", BadPipeline, "expected a pass name at ',append'"),
    ],
)
def test_errors_list_what_is_known(text: str, error: type[BadInput], message: str) -> None:
    with pytest.raises(error) as caught:
        Pipeline.parse(text, KNOWN)
    assert message in str(caught.value)


def test_parts() -> None:
    pipeline = Pipeline.parse("append{text=a},every-option,append{text=b},break", KNOWN)
    assert str(pipeline.part("every-option", "append")) == "every-option,append{text=b}"
    assert str(pipeline.without(["append", "break"])) == "every-option"
    with pytest.raises(UnknownPass, match="no pass 'apend'"):
        pipeline.without(["apend"])


def test_observers_see_every_change() -> None:
    seen: list[Event] = []

    class See(Observer):
        def after(self, event: Event) -> None:
            seen.append(event)

    timer = Timer()
    run("append{text=a},append,append{text=b}", observers=(See(), timer))
    changes: list[Any] = [(e.before, e.after, e.changed) for e in seen]
    assert changes == [("p", "pa", True), ("pa", "pa", False), ("pa", "pab", True)]
    assert [name for name, _, _ in timer.rows] == ["append{text=a}", "append", "append{text=b}"]
    assert "(no change)" in timer.table()


def test_failures_say_where() -> None:
    stream = io.StringIO()
    with pytest.raises(PassCrashed) as caught:
        run("append{text=x},break", observers=(PrintIR(stream, when="failure"),))
    assert caught.value.render().splitlines() == [
        "error[DLC0305]: pass 'break' failed with ZeroDivisionError: a bug",
        "  help: this is a fault of dlc, not of your model; please report it with the dump directory (--dump-dir)",
        "  note: in pass 2 of 2, 'break'",
    ]
    assert stream.getvalue() == "// ---- input of pass 2, break, which failed ----\npx\n"
    with pytest.raises(BadOption) as refused:
        run("break{kind=refuse}")
    assert refused.value.notes == ("in pass 1 of 1, 'break{kind=refuse}'",)


def test_prints_changes_as_diffs() -> None:
    stream = io.StringIO()
    run("append{text=a},append", observers=(PrintIR(stream, when="change"),))
    assert stream.getvalue().splitlines()[0] == "// ---- after pass 1 of 2, append{text=a} ----"
    assert stream.getvalue().splitlines()[-2:] == ["-p", "+pa"]


def test_numeric_check_names_the_first_wrong_pass() -> None:
    def interpret(program: Any) -> tuple[np.ndarray, ...]:
        return (np.array([1.0, float(str(program).count("!"))]),)

    check = NumericCheck(interpret)
    run("append{text=a}", observers=(check,))
    with pytest.raises(PassChangedResult, match=r"pass 'append' changed output 0: \[1\] is 1.0 instead of 0.0"):
        run("append{text=a},append{text='!'},append{text=b}", observers=(check,))


def test_difference_knows_nan_and_infinity() -> None:
    a = np.array([np.nan, np.inf, 1.0])
    assert difference_of(a, a.copy(), 0.0) is None
    assert difference_of(a, np.array([np.nan, -np.inf, 1.0]), 1e9) is not None
    assert difference_of(a, np.array([0.0, np.inf, 1.0]), 1e9) is not None
    assert difference_of(a, np.array([np.nan, np.inf, 1.1]), 0.2) is None
    assert difference_of(a, a[:2], 0.0) == "float64[3] instead of float64[2]"
    assert difference_of(np.array([2**60]), np.array([2**60 + 1]), 5.0) is not None


def test_every_real_pass_round_trips() -> None:
    for kind in passes().values():
        assert Pipeline.parse(kind.name, passes()) == Pipeline((kind(),)), kind
        assert kind.__doc__, kind
