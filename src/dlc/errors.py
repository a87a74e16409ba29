"""The errors a user of dlc sees: one class per cause, each with a code, a place and a way out.

A subclass names its fields in `template` and, where there is something the user can do, in `hint`:

    class UndefinedTensor(DlcError):
        code = "DLC0102"
        template = "tensor '{tensor}' is read here but no input or earlier Einsum defines it"
        hint = "define it above this line, or add it to the inputs of '{cascade}'"

    raise UndefinedTensor(loc, tensor="DS", cascade="attention")

which prints as

    bad.ein:6:24: error[DLC0102]: tensor 'DS' is read here but no input or earlier Einsum defines it
        A[m, p] = SN[m, p] / DS[p]
                             ^
      help: define it above this line, or add it to the inputs of 'attention'
      note: in pass 3 of 5, 'defer-division{max_rewrites=8}'

Codes are unique: defining a second class with a code already taken fails at import.  By range:
DLC01xx text form and verifier, DLC02xx front ends, DLC03xx passes and pipelines, DLC04xx code generation,
DLC05xx artifact and runtime, DLC06xx command line, DLC07xx cost models, DLC09xx our own faults.  A code's hundreds
say where, its class's family says how the process ends (`exit_code`).
"""

from __future__ import annotations

from string import Formatter
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_BAD_INPUT = 1
EXIT_USAGE = 2
EXIT_UNSUPPORTED = 3
EXIT_MISMATCH = 4
EXIT_INTERNAL = 5
EXIT_INFEASIBLE = 6

REGISTRY: dict[str, type[DlcError]] = {}
"""Every error class that has been imported, by code."""


class DlcError(Exception):
    """Base of all errors meant for users.

    Attributes:
        loc: where it happened; anything whose `str` is a place, such as `dlc.ir.loc.Loc`, or None.
        fields: what the template was filled with, for scripts that want the parts.
        source: a line of text (model source or IR) to quote, or None.
        span: column of the fault in `source` as (first, end), counted from 0, for the caret.
    """

    code: ClassVar[str] = "DLC0000"
    template: ClassVar[str] = "{message}"
    hint: ClassVar[str | None] = None
    exit_code: ClassVar[int] = EXIT_BAD_INPUT

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            return  # a family, or one more cause of its parent's kind
        taken = REGISTRY.get(cls.code)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"error code {cls.code} of {cls.__qualname__} is already that of {taken.__qualname__}")
        REGISTRY[cls.code] = cls

    def __init__(
        self,
        loc: object = None,
        *,
        source: str | None = None,
        span: tuple[int, int] | None = None,
        **fields: Any,
    ) -> None:
        self.loc = loc
        self.source = source
        self.span = span
        self.fields = fields
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The filled template, without place, quote or notes."""
        return _fill(self.template, self.fields)

    @property
    def help(self) -> str | None:
        """The filled hint, the way out, if this error has one."""
        return (None if self.hint is None else _fill(self.hint, self.fields).strip()) or None

    @property
    def notes(self) -> tuple[str, ...]:
        """Context added on the way out by `add_note`."""
        return tuple(getattr(self, "__notes__", ()))

    def __str__(self) -> str:
        place = "" if self.loc is None else str(self.loc)
        lines = [f"{place}: error[{self.code}]: {self.message}" if place else f"error[{self.code}]: {self.message}"]
        if self.source is not None:
            lines.extend(_quote(self.source, self.span))
        if self.help is not None:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)

    def render(self) -> str:
        """Everything, notes included (`str` leaves them to Python's own traceback, which prints them)."""
        return "\n".join([str(self), *(f"  note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """The error as plain data, for `--format json`."""
        return {
            "code": self.code,
            "kind": type(self).__name__,
            "loc": None if self.loc is None or not str(self.loc) else str(self.loc),
            "message": self.message,
            "help": self.help,
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # exceptions are rebuilt from `args` by default, which drops the keyword fields; worker processes need them
        return (_rebuild, (type(self), self.loc, self.source, self.span, self.fields, list(self.notes)))


def _rebuild(
    cls: type[DlcError],
    loc: object,
    source: str | None,
    span: tuple[int, int] | None,
    fields: dict[str, Any],
    notes: list[str],
) -> DlcError:
    error = cls.__new__(cls)
    DlcError.__init__(error, loc, source=source, span=span, **fields)
    for note in notes:
        error.add_note(note)
    return error


def _fill(template: str, fields: dict[str, Any]) -> str:
    """`template.format(**fields)`, but a missing field shows as `{name}`: an error must not fail to print."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    known = {name: fields.get(name, "{" + name + "}") for name in names}
    try:
        return template.format(**known)
    except (ValueError, TypeError, AttributeError, LookupError):
        return f"{template} {fields}"


def _quote(source: str, span: tuple[int, int] | None) -> list[str]:
    line = source.rstrip("\n")
    stripped = line.lstrip()
    lines = [f"    {stripped}"]
    if span is not None and "\n" not in line:
        indent = len(line) - len(stripped)
        first = max(span[0] - indent, 0)
        width = max(span[1] - span[0], 1)
        lines.append(" " * (4 + first) + "^" + "~" * (width - 1))
    return lines


class BadInput(DlcError):
    """What the user gave is wrong: a file, a shape, a text."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class Unsupported(DlcError):
    """What the user gave is right, but dlc cannot compile it (yet); never a wrong answer instead."""

    code = "DLC0001"
    template = "not supported: {op} because {reason}"
    exit_code: ClassVar[int] = EXIT_UNSUPPORTED


class Mismatch(DlcError):
    """Two results that must agree do not."""

    exit_code: ClassVar[int] = EXIT_MISMATCH


class Internal(DlcError):
    """A fault of dlc itself."""

    code = "DLC0901"
    template = "internal error: {message}"
    hint = "this is a fault of dlc, not of your model; please report it with the dump directory (--dump-dir)"
    exit_code: ClassVar[int] = EXIT_INTERNAL


class Infeasible(DlcError):
    """No solution fits the budget that was asked for."""

    exit_code: ClassVar[int] = EXIT_INFEASIBLE


class MissingPackage(DlcError):
    """A package that this step needs is not installed."""

    code = "DLC0002"
    template = "{what} needs the package '{package}', which is not installed"
    hint = "pip install '{install}'"
