"""The IR's errors: text form (DLC0100-0119), verifier (DLC0120-0149), interpreter and analyses (DLC0150-0169)."""

from __future__ import annotations

from dlc.errors import BadInput
from dlc.ir.extent import IntExpr


class IrError(BadInput):
    """Something is wrong with a program of the IR."""


# --- text form -------------------------------------------------------------------------------------------------------


class SyntaxFault(IrError):
    code = "DLC0100"
    template = "unexpected {found}; expected {expected}"


class UnknownName(IrError):
    code = "DLC0101"
    template = "{kind} '{name}' is not known here"
    hint = "{suggestion}"


class UndefinedTensor(IrError):
    code = "DLC0102"
    template = "tensor '{tensor}' is read here but no input or earlier Einsum defines it"
    hint = "{suggestion}"


class UntypedOperand(IrError):
    code = "DLC0103"
    template = "the type of '{what}' cannot be inferred"
    hint = "declare it, as in `Z[i]: f32 = ...`"


class BadLiteral(IrError):
    code = "DLC0104"
    template = "'{text}' is not a value of type {dtype}"


class NotAnIndex(IrError):
    code = "DLC0105"
    template = "'{text}' cannot be an index: {reason}"
    hint = "an index is +, -, *, //, %, min, max over ranks, symbols and integers, or an integer tensor's element"


class WrongTextKind(IrError):
    code = "DLC0106"
    template = "the text holds {found}, where {expected} is expected"


# --- verifier --------------------------------------------------------------------------------------------------------


class Redefined(IrError):
    code = "DLC0120"
    template = "'{name}' is defined a second time"
    hint = "a tensor is written once; give this one a new name"


class Undefined(IrError):
    code = "DLC0121"
    template = "'{name}' is read in '{where}' but not defined before it"
    hint = "{suggestion}"


class WrongRankCount(IrError):
    code = "DLC0122"
    template = "'{access}' has {given} indices, but '{tensor}' is {type}"


class TypeClash(IrError):
    code = "DLC0123"
    template = "operands of '{op}' have types {types}"
    hint = "there is no implicit promotion: write cast<{first}>(...) on one of them"


class WrongKind(IrError):
    code = "DLC0124"
    template = "'{op}' does not take {dtype}"


class ResultType(IrError):
    code = "DLC0125"
    template = "'{name}' is declared {declared}, but its expression is {actual}"
    hint = "declare it {actual}, or write cast<{declared}>(...)"


class NotBool(IrError):
    code = "DLC0126"
    template = "{what} must be bool, not {dtype}"


class UnknownRank(IrError):
    code = "DLC0127"
    template = "'{name}' in '{expr}' is not a rank of this step"
    hint = "{suggestion}"


class DuplicateRank(IrError):
    code = "DLC0128"
    template = "rank '{name}' occurs twice in the step that writes '{tensor}'"


class UnboundSymbol(IrError):
    code = "DLC0129"
    template = "extent symbol '{name}' is not bound by any input, bind or library operation"


class NotInBounds(IrError):
    code = "DLC0130"
    template = "'{access}' may read outside '{tensor}': 0 <= {index} < {extent} is not proven"
    unproven: tuple[IntExpr, IntExpr, dict[str, IntExpr]] | None = None  # index, extent, extents of the ranks
    hint = "write `{access} else v`, restrict the step with `where`, or guard the read with a piecewise definition"


class OutsideDomain(IrError):
    code = "DLC0131"
    template = "'{access}' may read where '{tensor}' does not exist: {predicate} is not proven"
    hint = "iterate the ranks on which it was written, or write `{access} else v`"


class UnknownReduction(IrError):
    code = "DLC0132"
    template = "'{op}' is not a reduction"
    hint = "known: {known}"


class ReductionArity(IrError):
    code = "DLC0133"
    template = "'{op}' folds {expected} values per element, but {given} are given"


class BadReduction(IrError):
    code = "DLC0134"
    template = "'{op}' cannot fold {dtype}: {reason}"


class BadScatter(IrError):
    code = "DLC0135"
    template = "scatter into '{tensor}': {reason}"


class YieldMismatch(IrError):
    code = "DLC0136"
    template = "{what}: {reason}"


class PartialEscapes(IrError):
    code = "DLC0137"
    template = "'{tensor}' is partial ({predicate}) and cannot be {use}"
    hint = "make it total first: an Einsum that reads `{tensor}[...] else v`"


class UnknownKernel(IrError):
    code = "DLC0138"
    template = "no kernel is named '{name}'"
    hint = "{suggestion}"


class ArgumentMismatch(IrError):
    code = "DLC0139"
    template = "{what}: {reason}"


class OuterRank(IrError):
    code = "DLC0140"
    template = "kernel '{kernel}': {reason}"


class BadSymbolFact(IrError):
    code = "DLC0141"
    template = "symbol '{name}': {reason}"


class BadLayout(IrError):
    code = "DLC0142"
    template = "the layout {order} of '{tensor}' is not a permutation of its {rank} dimensions"


class BadPitch(IrError):
    code = "DLC0147"
    template = "'{tensor}' cannot have a pitch of {pitch}: {reason}"
    hint = "leave the pitch to tensors that Einsums write and read; a copy without one can go on from there"


class UnknownOperator(IrError):
    code = "DLC0143"
    template = "'{op}' is not a scalar operator"
    hint = "{suggestion}"


class WrongArity(IrError):
    code = "DLC0144"
    template = "'{op}' takes {expected} operands, not {given}"


class MissingConstant(IrError):
    code = "DLC0145"
    template = "constant '{name}': {reason}"


class DivisionByZeroExtent(IrError):
    code = "DLC0146"
    template = "'{expr}' divides by {den}, which is not proven to be positive"


# --- interpreter -----------------------------------------------------------------------------------------------------


class NotResident(IrError):
    """A tensor is read between its `spill` and its `fill`."""

    code = "DLC0148"
    template = "'{tensor}' is read in '{where}' while it is spilled"
    hint = "`fill` it first"


class BadTransfer(IrError):
    """A `spill` or `fill` where none can be."""

    code = "DLC0149"
    template = "transfer of '{tensor}': {reason}"


class IndexOutOfRange(IrError):
    code = "DLC0150"
    template = "'{access}' reads index {index} of dimension {dimension}, which has extent {extent}"
    hint = "indices held in tensors are checked when the program runs; look at the values of the index tensor"


class ScatterOutOfRange(IrError):
    code = "DLC0151"
    template = "a scatter into '{tensor}' writes index {index} of dimension {dimension}, which has extent {extent}"
    hint = "negative indices do not wrap here; `drop` leaves such writes out"


class WrongInputs(IrError):
    code = "DLC0152"
    template = "{reason}"


class SymbolMismatch(IrError):
    code = "DLC0153"
    template = "{reason}"


class RunTimeExtent(IrError):
    code = "DLC0154"
    template = "'{symbol}' is bound to {value}, outside {range}"


class UnknownLibraryOp(IrError):
    code = "DLC0155"
    template = "'{op}' is not a library operation"
    hint = "known: {known}"


class InvalidCode(IrError):
    """A byte is to be packed as a code that its type does not have."""

    code = "DLC0157"
    template = "{code} is no code of {dtype}, which has {codes}"
    hint = "`dlc.ir.codes.encode` makes codes of numbers"


# --- analyses --------------------------------------------------------------------------------------------------------


class NoSuchFiber(IrError):
    """Passes were asked for along a rank that a tensor does not have."""

    code = "DLC0156"
    template = "'{tensor}' of '{cascade}' has no dimension along rank '{rank}'"
    hint = "name a rank of its index, or the symbol of its extent"
