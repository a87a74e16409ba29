"""Errors of artifacts and of running them: DLC0500 to DLC0599.

0500-0519 the file and what is in it, 0520-0539 the call, 0540-0559 raised by compiled code (see `RuntimeCheckFailed`),
0560-0579 the machine.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dlc.errors import BadInput, DlcError, Infeasible, Internal, Unsupported


class BadManifest(BadInput):
    """A field of the manifest is missing or makes no sense."""

    code = "DLC0500"
    template = "the manifest's field {field} is wrong: {reason}"
    hint = "the artifact is damaged or was written by something else; compile the model again"


class NotAnArtifact(BadInput):
    """The file has another beginning than an artifact."""

    code = "DLC0501"
    template = "'{path}' is not a dlc artifact: {reason}"
    hint = "dlc.load reads files that exe.save or `dlc compile` wrote"


class DamagedArtifact(BadInput):
    """Lengths or digests do not agree with the bytes."""

    code = "DLC0502"
    template = "the artifact '{path}' is damaged: {reason}"
    hint = "copy the file again, or compile the model again"


class WrongVersion(BadInput):
    """The artifact's format or ABI is not the one this runtime speaks."""

    code = "DLC0503"
    template = "the artifact has {what} {found}, this runtime speaks {known}"
    hint = "compile the model again with this version of dlc"


class MissingCpuFeatures(Unsupported):
    """The code needs instructions this CPU lacks; running it would end in an illegal instruction."""

    code = "DLC0504"
    template = "this CPU cannot run the artifact: it lacks {missing}"
    hint = "compile for it, for instance with target='{suggestion}'"


class BadObject(BadInput):
    """Object code that the loader does not understand, or that is damaged."""

    code = "DLC0505"
    template = "the object code '{name}' cannot be loaded: {reason}"
    hint = "the artifact is damaged or from another version of dlc; compile the model again"


class UnresolvedSymbol(BadInput):
    """Object code calls a function that is neither in the artifact nor in the C library."""

    code = "DLC0506"
    template = "the object code '{name}' needs '{symbol}', which is neither in the artifact nor in libc, libm, libgcc"
    hint = "compile the model again; if it persists, report it: the code generator called a helper it should not"


class BadExpression(BadInput):
    """An integer expression of the manifest is outside the small language."""

    code = "DLC0507"
    template = "the expression '{text}' is refused: {reason}"
    hint = "allowed are integers, symbols, + - * // %, min() and max()"


class CannotWrite(BadInput):
    """The artifact could not be written; whatever was there before is still there."""

    code = "DLC0508"
    template = "cannot write '{path}': {reason}"
    hint = "the file that was there before is unchanged; free some space or choose another path"


class CannotRead(BadInput):
    """The file cannot be opened."""

    code = "DLC0509"
    template = "cannot read '{path}': {reason}"


class WrongArgumentCount(BadInput):
    """Too few, too many or unknown arguments, or another nesting than the model's."""

    code = "DLC0520"
    template = "the arguments do not match the model's: {reason}"
    hint = "expected {expected}"


class WrongDtype(BadInput):
    """An input has another element type."""

    code = "DLC0521"
    template = "input '{name}' has element type {found}, expected {expected}"
    hint = "convert it before the call, for instance with .astype or .to; dlc never converts silently"


class WrongRank(BadInput):
    """An input has another number of dimensions."""

    code = "DLC0522"
    template = "input '{name}' has shape {found}, expected {expected}: {expected_rank} dimensions, not {found_rank}"


class WrongShape(BadInput):
    """A dimension of an input has another size than compiled for."""

    code = "DLC0523"
    template = "input '{name}' has shape {found}, expected {expected}: dimension {dim} is {size}, {reason}"
    hint = "make the dimension symbolic with dynamic_shapes= when compiling, or pass the size it was compiled for"


class SymbolMismatch(BadInput):
    """Two dimensions that carry one symbol differ."""

    code = "DLC0524"
    template = "input '{name}' has shape {found}, expected {expected}: dimension {dim} is {size}, but {reason}"


class SymbolOutOfRange(BadInput):
    """A symbol's value is outside its bounds or not a multiple of its divisor."""

    code = "DLC0525"
    template = "input '{name}' has shape {found}: '{symbol}' would be {value}, but {reason}"
    hint = "compile with wider bounds in dynamic_shapes="


class UnusableInput(BadInput):
    """An argument that is no CPU tensor in memory."""

    code = "DLC0526"
    template = "input '{name}' cannot be used: {reason}"


class BadOut(BadInput):
    """What was passed as out= does not fit."""

    code = "DLC0527"
    template = "out= does not fit output '{name}': {reason}"
    hint = "pass C-contiguous, writable arrays of {expected}, nested as the result is"


class CannotEvaluate(BadInput):
    """A size cannot be computed: a division by zero, or beyond 64 bits."""

    code = "DLC0528"
    template = "a size of this call cannot be computed: {reason}"


class NotEnoughMemory(Infeasible):
    """The arena or an output could not be allocated."""

    code = "DLC0529"
    template = "this call needs {needed} bytes for {what}, which the system refuses"
    hint = "use a smaller batch or length, or compile with memory_budget="


class OverBudget(Infeasible):
    """A program that was compiled with a memory budget is run with more threads than the budget was planned for."""

    code = "DLC0531"
    template = "this call needs {needed} bytes of arena with {threads} threads, above its budget of {budget}"
    hint = "load it with threads={limit}, or compile it for this many threads"


class BadDynamicOutput(Internal):
    """Compiled code returned an extent that cannot be."""

    code = "DLC0530"
    template = "compiled code returned an impossible extent for output '{name}': {reason}"


class RuntimeCheckFailed(BadInput):
    """A check inside compiled code failed; `code` is the one the manifest names (DLC0540 to DLC0559).

    DLC0540 an index is outside its tensor, DLC0541 an extent found at run time is outside its bounds,
    DLC0542 an assertion of the model, DLC0543 memory for a result whose size is found at run time.
    """

    code: ClassVar[str] = "DLC0540"
    template = "{message}"

    @property
    def actual_code(self) -> str:
        """The code that the manifest gave to this check."""
        return str(self.fields.get("check_code", self.code))

    def __str__(self) -> str:
        return super().__str__().replace(f"error[{self.code}]", f"error[{self.actual_code}]", 1)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "code": self.actual_code}


class NativeFault(Internal):
    """Compiled code ended with an error it did not explain."""

    code = "DLC0560"
    template = "compiled code returned {status} without naming a check"


class UnsupportedPlatform(Unsupported):
    """Not Linux on x86-64."""

    code = "DLC0561"
    template = "this runtime needs Linux on x86-64, this is {found}"


class NativeMemory(Infeasible):
    """The system refused memory for code, or to make it executable."""

    code = "DLC0562"
    template = "cannot map {what}: {reason}"
    hint = "a security policy that forbids executable memory stops any just-in-time compiled code"


class BadThreadCount(BadInput):
    """The number of threads is no number of threads."""

    code = "DLC0563"
    template = "{setting} is {found!r}, expected a whole number from 1 to 1024"


__all__ = [name for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, DlcError)]
