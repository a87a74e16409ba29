"""Passes and pipelines: rewrites of programs as data that can be printed, read, sliced and watched.

    pipeline = Pipeline.parse("dead-code,fuse{max_steps=8}", PASSES)
    program = pipeline.run(program, observers=(Timer(), PrintIR(sys.stderr)))

`str(pipeline)` is what `dlc opt --pass-pipeline '...'` reads: pass names with commas between, options in braces as
`key=value` with spaces or commas between, the default values left out.  A pass knows nothing of dumps, timers or
flags: observers see every program before and after (`Observer`), and the pipeline itself verifies after each pass.
"""

from __future__ import annotations

import difflib
import logging
import re
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from dlc.errors import BadInput, DlcError, Internal

if TYPE_CHECKING:
    from dlc.ir.program import Program
    from dlc.passes.observers import Observer


LOG = logging.getLogger("dlc.passes")


class UnknownPass(BadInput):
    """A pipeline names a pass that does not exist."""

    code = "DLC0301"
    template = "there is no pass '{name}'"
    hint = "{guess}the passes are: {known}"


class UnknownOption(BadInput):
    """A pipeline gives a pass an option that it does not have."""

    code = "DLC0302"
    template = "pass '{name}' has no option '{option}'"
    hint = "{guess}its options are: {known}"


class BadOption(BadInput):
    """An option's value has the wrong type."""

    code = "DLC0303"
    template = "option '{option}' of pass '{name}' takes {wanted}, not '{value}'"


class BadPipeline(BadInput):
    """The text of a pipeline cannot be read."""

    code = "DLC0304"
    template = "cannot read the pipeline: {reason}"
    hint = "write it as: dead-code,fuse{{max_steps=8}}"


class PassCrashed(Internal):
    """A pass raised something that is not an error for users."""

    code = "DLC0305"
    template = "pass '{name}' failed with {kind}: {message}"


class InvalidOutput(Internal):
    """A pass was given a program that verifies and made one that does not."""

    code = "DLC0306"
    template = "pass '{name}' made an invalid program: {message}"


@dataclass(frozen=True)
class Pass:
    """One rewrite of a program; its fields are its options on the command line, so they need defaults.

    A subclass says in its docstring what it rewrites into what, under which condition, and from which source it is
    known; the first line is what `dlc opt --list-passes` shows.
    """

    name: ClassVar[str] = ""

    def apply(self, program: Program) -> Program:
        """The rewritten program, or the same object when nothing applied."""
        raise NotImplementedError

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        """What this pass did, in numbers for `passes.jsonl`; nothing by default."""
        return {}

    def __str__(self) -> str:
        options = [
            f"{option.name}={_print_value(getattr(self, option.name))}"
            for option in fields(self)
            if getattr(self, option.name) != _default(option)
        ]
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str, passes: Mapping[str, type[Pass]]) -> Pipeline:
        """Read a pipeline's text form.

        Args:
            text: such as `dead-code,fuse{max_steps=8}`; an empty text is the empty pipeline.
            passes: the known passes by name.

        Raises:
            BadPipeline, UnknownPass, UnknownOption, BadOption: with what is known instead.
        """
        return cls(tuple(_make(name, options, passes) for name, options in _split(text)))

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes)

    def without(self, names: Iterable[str]) -> Pipeline:
        """The pipeline less the passes of these names (`--disable-pass`)."""
        drop = set(names)
        self._must_have(drop)
        return Pipeline(tuple(p for p in self.passes if p.name not in drop))

    def part(self, first: str | None = None, last: str | None = None) -> Pipeline:
        """From the first pass named `first` to the last one named `last`, both included (`--compile-from`, `-to`)."""
        self._must_have({name for name in (first, last) if name is not None})
        names = [p.name for p in self.passes]
        start = 0 if first is None else names.index(first)
        stop = len(names) if last is None else len(names) - names[::-1].index(last)
        return Pipeline(self.passes[start:stop])

    def _must_have(self, names: Iterable[str]) -> None:
        have = [p.name for p in self.passes]
        for name in sorted(names):
            if name not in have:
                raise UnknownPass(name=name, guess=_guess(name, have), known=", ".join(dict.fromkeys(have)) or "none")

    def run(self, program: Program, observers: Sequence[Observer] = (), *, verify: bool = True) -> Program:
        """The program after all passes.

        Args:
            program: is verified first, so that what a pass gets is sound.
            observers: called in their order around each pass.
            verify: check the program before the first and after each pass (`--check-each`).

        Raises:
            DlcError: from a pass, with a note saying which; PassCrashed and InvalidOutput when a pass is at fault.
        """
        if verify:
            _verify(program)
        for observer in observers:
            observer.start(self, program)
        for index, step in enumerate(self.passes):
            for observer in observers:
                observer.before(index, step, program)
            began = time.perf_counter()
            try:
                after = _apply(step, program)
                seconds = time.perf_counter() - began
                if verify and after is not program:
                    _verify_output(step, after)
                event = Event(index, len(self.passes), step, program, after, seconds)
                if LOG.isEnabledFor(logging.INFO):
                    LOG.info("%s: %.2f ms%s", step, seconds * 1e3, "" if event.changed else ", no change")
                for observer in observers:
                    observer.after(event)
            except BaseException as error:
                if isinstance(error, DlcError):
                    error.add_note(f"in pass {index + 1} of {len(self.passes)}, '{step}'")
                for observer in observers:
                    observer.failed(index, step, program, error)
                raise
            program = after
        for observer in observers:
            observer.finish(program)
        return program


@dataclass(frozen=True)
class Event:
    """One pass that ran.

    Attributes:
        index, count: which pass of how many, from 0.
        step: the pass.
        before, after: the programs; the same object when nothing applied.
        seconds: wall time of the pass alone, verification not included.
    """

    index: int
    count: int
    step: Pass
    before: Program
    after: Program
    seconds: float
    _changed: list[bool] = field(default_factory=list, compare=False, repr=False)

    @property
    def changed(self) -> bool:
        """Whether the pass made a different program (structurally)."""
        if not self._changed:
            self._changed.append(self.after is not self.before and self.after != self.before)
        return self._changed[0]


def options_of(step: type[Pass]) -> dict[str, tuple[str, Any]]:
    """Options of a pass by name: what type they take, and their default."""
    hints = get_type_hints(step)
    return {option.name: (_type_name(hints[option.name]), _default(option)) for option in fields(step)}


def _apply(step: Pass, program: Program) -> Program:
    try:
        return step.apply(program)
    except DlcError:
        raise
    except Exception as error:
        raise PassCrashed(name=step.name, kind=type(error).__name__, message=str(error) or "no message") from error


def _verify(program: Program) -> None:
    from dlc.ir.verify import verify  # here, so that a pipeline can be read and printed without the verifier's imports

    verify(program)


def _verify_output(step: Pass, program: Program) -> None:
    try:
        _verify(program)
    except DlcError as error:
        invalid = InvalidOutput(error.loc, source=error.source, span=error.span, name=step.name, message=error.message)
        for note in error.notes:
            invalid.add_note(note)
        raise invalid from error


# the text form


def _split(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Pass names with the text of their options."""
    place = 0
    text = text.strip()
    while place < len(text):
        match = re.compile(r"\s*([\w.-]+)\s*").match(text, place)
        if match is None:
            raise BadPipeline(reason=f"expected a pass name at '{text[place : place + 20]}'")
        place = match.end()
        options: dict[str, str] = {}
        if text[place : place + 1] == "{":
            close = text.find("}", place)
            if close < 0:
                raise BadPipeline(reason=f"'{{' after '{match[1]}' is not closed")
            options = dict(_split_options(match[1], text[place + 1 : close]))
            place = close + 1
        yield match[1], options
        rest = re.compile(r"\s*(,|$)\s*").match(text, place)
        if rest is None:
            raise BadPipeline(reason=f"expected ',' or the end at '{text[place : place + 20]}'")
        place = rest.end()
        if rest[1] == "," and place >= len(text):
            raise BadPipeline(reason="it ends with a comma")


def _split_options(name: str, text: str) -> Iterator[tuple[str, str]]:
    place = 0
    pattern = re.compile(r"""[\s,]*([\w-]+)\s*=\s*("[^"]*"|'[^']*'|\[[^\]]*\]|[^\s,{}]+)[\s,]*""")
    while place < len(text) and text[place:].strip(" ,"):
        match = pattern.match(text, place)
        if match is None:
            raise BadPipeline(reason=f"options of '{name}' are key=value, not '{text[place:].strip()}'")
        yield match[1].replace("-", "_"), match[2]
        place = match.end()


def _make(name: str, options: Mapping[str, str], passes: Mapping[str, type[Pass]]) -> Pass:
    kind = passes.get(name)
    if kind is None:
        raise UnknownPass(name=name, guess=_guess(name, passes), known=", ".join(sorted(passes)))
    hints = get_type_hints(kind)
    known = [option.name for option in fields(kind)]
    values = {}
    for option, text in options.items():
        if option not in known:
            listed = ", ".join(f"{o} ({t}, default {_print_value(d)})" for o, (t, d) in options_of(kind).items())
            raise UnknownOption(name=name, option=option, guess=_guess(option, known), known=listed or "none")
        try:
            values[option] = _read_value(text, hints[option])
        except ValueError:
            wanted = _type_name(hints[option])
            raise BadOption(name=name, option=option, wanted=wanted, value=text) from None
    return kind(**values)


def _read_value(text: str, hint: Any) -> Any:
    """An option's value from its text, by the type of the dataclass field; ValueError if it does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if text == "none" and type(None) in arguments:
            return None
        for kind in arguments:
            try:
                if kind is not type(None):
                    return _read_value(text, kind)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        for choice in arguments:
            if str(choice) == _unquote(text):
                return choice
        raise ValueError(text)
    if origin is tuple:
        inner = text.removeprefix("[").removesuffix("]").replace(",", " ").split()
        return tuple(_read_value(part, arguments[0]) for part in inner)
    if hint is bool:
        if text.lower() in ("true", "1", "on", "yes"):
            return True
        if text.lower() in ("false", "0", "off", "no"):
            return False
        raise ValueError(text)
    if hint is int or hint is float:
        return hint(text)
    if hint is str:
        return _unquote(text)
    raise TypeError(f"a pass option of type {hint} cannot be written in a pipeline")


def _print_value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "none"
        case tuple():
            return "[" + ",".join(_print_value(v) for v in value) + "]"
        case str() if not re.fullmatch(r"[^\s,{}\"'\[\]]+", value) or value == "none":
            return f'"{value}"'
        case _:
            return str(value)


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if a is type(None) else _type_name(a) for a in arguments)
    if origin is Literal:
        return " or ".join(str(a) for a in arguments)
    if origin is tuple:
        return f"[{_type_name(arguments[0])},...]"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def _default(option: Any) -> Any:
    if option.default_factory is not MISSING:
        return option.default_factory()
    return option.default


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{close[0]}'? " if close else ""
