"""MLIR text to x86-64 object bytes: the one module that imports MLIR, and the one that talks to LLVM.

MLIR's own passes lower the text to the LLVM dialect and translate it to LLVM IR. From there LLVM's C API is driven
directly through ctypes rather than through MLIR's execution engine: only so does a target machine with exactly the
requested processor and features generate the code, and only so are there plain objects without wrapper functions.

Relocations in the objects: PC32 and PLT32 (constants, calls), 64 (absolute), and GOTPCREL kinds where the address of an
external symbol is taken. External symbols are limited to the C library and libm.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dlc.codegen.target import Target
from dlc.errors import Internal

TRIPLE = "x86_64-unknown-linux-gnu"

# Order matters: vector.* and scf first (they produce arith, cf and ub), arith after every pass that creates index
# arithmetic, cf and func last because they fix up block and function signatures.
PASSES = (
    "builtin.module(canonicalize,cse,convert-vector-to-scf,convert-scf-to-cf,convert-math-to-llvm,"
    "convert-vector-to-llvm,convert-ub-to-llvm,expand-strided-metadata,finalize-memref-to-llvm,convert-arith-to-llvm,"
    "convert-index-to-llvm,convert-cf-to-llvm,convert-func-to-llvm,reconcile-unrealized-casts)"
)

LOOP_ANNOTATION = "llvm.loop_annotation"
"""Attribute of an `scf.for` whose value goes to LLVM with the loop."""


class InvalidMlir(Internal):
    """Generated MLIR does not parse, verify or lower: a fault of the compiler, not of the model."""

    code = "DLC0490"
    template = "generated MLIR was rejected while {stage}: {reason}"


class LlvmFailure(Internal):
    """LLVM refused a module: a fault of the compiler, not of the model."""

    code = "DLC0491"
    template = "LLVM failed while {stage}: {reason}"


@dataclass(frozen=True, slots=True)
class Compiled:
    """Object code of one MLIR module.

    Attributes:
        object: bytes of a relocatable ELF file.
        llvm_ir: LLVM IR before optimisation, when asked for.
        asm: assembly text, when asked for.
        times: seconds spent in 'parse', 'mlir', 'translate', 'opt' and 'emit'.
    """

    object: bytes
    llvm_ir: str | None = None
    asm: str | None = None
    times: dict[str, float] = field(default_factory=dict, compare=False)


def compile_mlir(
    text: str, target: Target, *, opt_level: int = 2, want_asm: bool = False, want_llvm: bool = False
) -> Compiled:
    """Compile MLIR text to an object for `target`.

    May be called from several threads at once: every call has its own MLIR and LLVM contexts, and the LLVM part
    (the larger one) runs without the interpreter lock.

    Args:
        text: a module of llvm, func, scf, cf, arith, math, vector and index operations.
        target: processor level; nothing beyond its features is used.
        opt_level: 0 to 3, LLVM's pipeline.
        want_asm: also return the assembly.
        want_llvm: also return the LLVM IR that enters LLVM's optimiser.

    Raises:
        InvalidMlir: the text does not parse, verify or lower.
        LlvmFailure: LLVM rejects the module.
    """
    clock = time.perf_counter
    times: dict[str, float] = {}
    llvm_ir = _to_llvm_ir(text, times)
    start = clock()
    with _Module(llvm_ir, target, opt_level) as module:
        module.optimise()
        times["opt"] = clock() - start
        start = clock()
        asm = module.emit(_ASSEMBLY).decode() if want_asm else None
        code = module.emit(_OBJECT)
        times["emit"] = clock() - start
    return Compiled(code, llvm_ir if want_llvm else None, asm, times)


# -- MLIR ------------------------------------------------------------------------------------------------------------


@cache
def _mlir() -> tuple[Any, Any, Any]:
    """The MLIR bindings, imported on first use: they take 0.2 s that a cache hit should not pay."""
    from mlir import ir
    from mlir._mlir_libs._mlirDialectsLLVM import translate_module_to_llvmir
    from mlir.passmanager import PassManager

    return ir, PassManager, translate_module_to_llvmir


def _to_llvm_ir(text: str, times: dict[str, float]) -> str:
    ir, pass_manager, translate = _mlir()
    clock = time.perf_counter
    stage = "parsing"
    start = clock()
    with ir.Context() as context, ir.Location.unknown():
        context.enable_multithreading(False)
        try:
            module = ir.Module.parse(text)
            times["parse"] = clock() - start
            stage, start = "lowering", clock()
            pass_manager.parse(PASSES).run(module.operation)
            _annotate_loops(module)
            times["mlir"] = clock() - start
            stage, start = "translating", clock()
            result: str = translate(module.operation)
            times["translate"] = clock() - start
        except (ir.MLIRError, RuntimeError) as error:
            raise InvalidMlir(stage=stage, reason=_reason(error, text)) from None
    return result


def _annotate_loops(module: Any) -> None:
    """What a loop says about itself, where LLVM's translation looks for it: scf's lowering passes it on under another name."""
    for function in module.body:
        for block in (b for region in function.regions for b in region):
            attributes = block.operations[len(block.operations) - 1].attributes
            if LOOP_ANNOTATION in attributes:
                attributes["loop_annotation"] = attributes[LOOP_ANNOTATION]


def ptx_of(text: str) -> str:
    """PTX of the one `gpu.module` in MLIR text, whose target is an attribute of that module.

    Raises:
        InvalidMlir: the text does not parse, verify or lower.
    """
    ir, pass_manager, _ = _mlir()
    from mlir.dialects import gpu

    stage = "parsing"
    with ir.Context() as context, ir.Location.unknown():
        context.enable_multithreading(False)
        try:
            module = ir.Module.parse(text)
            stage = "lowering to PTX"
            pass_manager.parse(PASSES[:-1] + ",gpu-module-to-binary{format=isa})").run(module.operation)
        except (ir.MLIRError, RuntimeError) as error:
            raise InvalidMlir(stage=stage, reason=_reason(error, text)) from None
        (binary,) = module.body.operations
        assembly: bytes = gpu.ObjectAttr(binary.attributes["objects"][0]).object
    return assembly.rstrip(b"\0").decode()


def _reason(error: Exception, text: str) -> str:
    """MLIR's message, with the offending line of the text when the message names one."""
    message = str(error).strip()
    for part in message.split(":"):
        if part.strip().isdigit():
            lines = text.splitlines()
            number = int(part)
            if 0 < number <= len(lines):
                return f"{message}\n    {lines[number - 1].strip()}"
            break
    return message


# -- LLVM ------------------------------------------------------------------------------------------------------------

_ASSEMBLY, _OBJECT = 0, 1
_RELOC_PIC, _CODE_MODEL_SMALL = 2, 3
_FUNCTION_INDEX = 0xFFFFFFFF
_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p
_INT = ctypes.c_int

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "LLVMContextCreate": (_POINTER, ()),
    "LLVMContextDispose": (None, (_POINTER,)),
    "LLVMCreateMemoryBufferWithMemoryRangeCopy": (_POINTER, (_TEXT, ctypes.c_size_t, _TEXT)),
    "LLVMParseIRInContext": (_INT, (_POINTER, _POINTER, _POINTER, _POINTER)),
    "LLVMDisposeModule": (None, (_POINTER,)),
    "LLVMCloneModule": (_POINTER, (_POINTER,)),
    "LLVMDisposeMessage": (None, (_POINTER,)),
    "LLVMSetTarget": (None, (_POINTER, _TEXT)),
    "LLVMGetTargetFromTriple": (_INT, (_TEXT, _POINTER, _POINTER)),
    "LLVMCreateTargetMachine": (_POINTER, (_POINTER, _TEXT, _TEXT, _TEXT, _INT, _INT, _INT)),
    "LLVMDisposeTargetMachine": (None, (_POINTER,)),
    "LLVMCreateTargetDataLayout": (_POINTER, (_POINTER,)),
    "LLVMSetModuleDataLayout": (None, (_POINTER, _POINTER)),
    "LLVMDisposeTargetData": (None, (_POINTER,)),
    "LLVMCreatePassBuilderOptions": (_POINTER, ()),
    "LLVMDisposePassBuilderOptions": (None, (_POINTER,)),
    "LLVMPassBuilderOptionsSetLoopVectorization": (None, (_POINTER, _INT)),
    "LLVMPassBuilderOptionsSetSLPVectorization": (None, (_POINTER, _INT)),
    "LLVMPassBuilderOptionsSetLoopInterleaving": (None, (_POINTER, _INT)),
    "LLVMRunPasses": (_POINTER, (_POINTER, _TEXT, _POINTER, _POINTER)),
    "LLVMGetErrorMessage": (_POINTER, (_POINTER,)),
    "LLVMDisposeErrorMessage": (None, (_POINTER,)),
    "LLVMTargetMachineEmitToMemoryBuffer": (_INT, (_POINTER, _POINTER, _INT, _POINTER, _POINTER)),
    "LLVMGetBufferStart": (_POINTER, (_POINTER,)),
    "LLVMGetBufferSize": (ctypes.c_size_t, (_POINTER,)),
    "LLVMDisposeMemoryBuffer": (None, (_POINTER,)),
    "LLVMGetFirstFunction": (_POINTER, (_POINTER,)),
    "LLVMGetNextFunction": (_POINTER, (_POINTER,)),
    "LLVMIsDeclaration": (_INT, (_POINTER,)),
    "LLVMCreateStringAttribute": (_POINTER, (_POINTER, _TEXT, ctypes.c_uint, _TEXT, ctypes.c_uint)),
    "LLVMAddAttributeAtIndex": (None, (_POINTER, ctypes.c_uint, _POINTER)),
}

_load_lock = threading.Lock()


@cache
def _llvm_library() -> Any:
    folder = importlib.import_module("llvm").__path__[0]
    library = ctypes.CDLL(str(Path(folder) / "lib" / "libLLVM.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for part in ("TargetInfo", "Target", "TargetMC", "AsmPrinter", "AsmParser"):
        getattr(library, f"LLVMInitializeX86{part}")()
    return library


def _llvm() -> Any:
    with _load_lock:  # the target registry must be filled once and by one thread
        return _llvm_library()


class _Module:
    """An LLVM module with its own context and target machine; a context manager that frees all three."""

    def __init__(self, llvm_ir: str, target: Target, opt_level: int) -> None:
        self.llvm = llvm = _llvm()
        self.target = target
        self.opt_level = opt_level
        self.context = llvm.LLVMContextCreate()
        self.module: int | None = None
        self.machine: int | None = None
        try:
            self._parse(llvm_ir)
            self._attach_target()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Module:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.machine:
            self.llvm.LLVMDisposeTargetMachine(self.machine)
        if self.module:
            self.llvm.LLVMDisposeModule(self.module)
        self.llvm.LLVMContextDispose(self.context)
        self.module = self.machine = None

    def _parse(self, llvm_ir: str) -> None:
        data = llvm_ir.encode()
        buffer = self.llvm.LLVMCreateMemoryBufferWithMemoryRangeCopy(data, len(data), b"dlc")
        module, message = _POINTER(), _POINTER()
        failed = self.llvm.LLVMParseIRInContext(
            self.context, buffer, ctypes.byref(module), ctypes.byref(message)
        )  # takes the buffer
        if failed:
            raise LlvmFailure(stage="reading LLVM IR", reason=self._take(message))
        self.module = module.value

    def _attach_target(self) -> None:
        llvm = self.llvm
        handle, message = _POINTER(), _POINTER()
        if llvm.LLVMGetTargetFromTriple(TRIPLE.encode(), ctypes.byref(handle), ctypes.byref(message)):
            raise LlvmFailure(stage="choosing the target", reason=self._take(message))
        cpu, features = self.target.cpu.encode(), self.target.llvm_features.encode()
        self.machine = llvm.LLVMCreateTargetMachine(
            handle, TRIPLE.encode(), cpu, features, min(self.opt_level, 3), _RELOC_PIC, _CODE_MODEL_SMALL
        )
        layout = llvm.LLVMCreateTargetDataLayout(self.machine)
        llvm.LLVMSetModuleDataLayout(self.module, layout)
        llvm.LLVMDisposeTargetData(layout)
        llvm.LLVMSetTarget(self.module, TRIPLE.encode())
        # Without this LLVM splits 512-bit operations in two on processors it believes to prefer 256 bits.
        width = str(self.target.vector_bits)
        function = llvm.LLVMGetFirstFunction(self.module)
        while function:
            if not llvm.LLVMIsDeclaration(function):
                self._attribute(function, "prefer-vector-width", width)
                self._attribute(function, "no-trapping-math", "true")
            function = llvm.LLVMGetNextFunction(function)

    def _attribute(self, function: int, key: str, value: str) -> None:
        attribute = self.llvm.LLVMCreateStringAttribute(
            self.context, key.encode(), len(key), value.encode(), len(value)
        )
        self.llvm.LLVMAddAttributeAtIndex(function, _FUNCTION_INDEX, attribute)

    def optimise(self) -> None:
        llvm = self.llvm
        options = llvm.LLVMCreatePassBuilderOptions()
        # The tile program has chosen the vectors; a second opinion costs compile time and code size.
        llvm.LLVMPassBuilderOptionsSetLoopVectorization(options, 0)
        llvm.LLVMPassBuilderOptionsSetLoopInterleaving(options, 0)
        llvm.LLVMPassBuilderOptionsSetSLPVectorization(options, 0)
        pipeline = f"default<O{min(max(self.opt_level, 0), 3)}>".encode()
        error = llvm.LLVMRunPasses(self.module, pipeline, self.machine, options)
        llvm.LLVMDisposePassBuilderOptions(options)
        if error:
            message = llvm.LLVMGetErrorMessage(error)
            reason = ctypes.string_at(message).decode(errors="replace")
            llvm.LLVMDisposeErrorMessage(message)
            raise LlvmFailure(stage="optimising", reason=reason)

    def emit(self, kind: int) -> bytes:
        """Object or assembly bytes; works on a copy, for code generation consumes the module."""
        llvm = self.llvm
        copy = llvm.LLVMCloneModule(self.module)
        buffer, message = _POINTER(), _POINTER()
        failed = llvm.LLVMTargetMachineEmitToMemoryBuffer(
            self.machine, copy, kind, ctypes.byref(message), ctypes.byref(buffer)
        )
        llvm.LLVMDisposeModule(copy)
        if failed:
            raise LlvmFailure(stage="emitting code", reason=self._take(message))
        data = ctypes.string_at(llvm.LLVMGetBufferStart(buffer), llvm.LLVMGetBufferSize(buffer))
        llvm.LLVMDisposeMemoryBuffer(buffer)
        return data

    def _take(self, message: ctypes.c_void_p) -> str:
        if not message.value:
            return "no message"
        text = ctypes.string_at(message.value).decode(errors="replace").strip()
        self.llvm.LLVMDisposeMessage(message)
        return text
