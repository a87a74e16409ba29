"""A compiled model in this process: call it, profile it, save it, load it.

One call is one native call.  Before it: the inputs are checked and their addresses found, the plan for their shapes is
looked up, an arena block is taken from the idle ones, fresh outputs are allocated, and the addresses are written into
a frame.  Nothing of this is shared between calls under way, so any number of threads may call at once.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from dlc.runtime import cpu
from dlc.runtime.arena import FileSlab, Slab, SlabPool
from dlc.runtime.artifact import Bytes, complete_manifest, read_artifact, write_artifact
from dlc.runtime.control import Region
from dlc.runtime.dtypes import accepts
from dlc.runtime.elf import libc, load_objects
from dlc.runtime.errors import (
    BadDynamicOutput,
    BadManifest,
    BadOut,
    NativeFault,
    RuntimeCheckFailed,
    UnusableInput,
    WrongArgumentCount,
)
from dlc.runtime.manifest import ABI, MAX_BYTES, Manifest, check_manifest
from dlc.runtime.plan import Context, Plan, Planner, new_context
from dlc.runtime.pool import Pool, get_pool
from dlc.runtime.profile import Profile, measure
from dlc.runtime.tree import Flattener, flatten_out, unflattener
from dlc.runtime.values import (
    LENT_OUTPUT_BYTES,
    InputReader,
    OutputWriter,
    adopt,
    array_address,
    as_tensor,
    copy_bytes,
    fresh_array,
    fresh_tensor,
    lent_tensor,
)

MAX_PLANS: Final = 256
"""Combinations of input shapes that are remembered."""

# Words of the native frame's header.
_ABI, _PARALLEL_FOR, _POOL, _THREADS, _CONSTANTS, _SCRATCH, _SCRATCH_BYTES = 0, 1, 2, 3, 4, 6, 7
_ERROR, _PROFILE, _MALLOC, _FREE, _COUNTS, _TIMES, _SPILL = 8, 9, 10, 11, 12, 13, 14

_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


class Executable:
    """A compiled model.

    Attributes:
        manifest: what the model takes and gives, as JSON.
        threads: how many threads its kernels use.
        compile_report: how it was compiled (`dlc.compiler.CompileReport`); None when it was loaded.
    """

    compile_report: Any = None

    def __init__(
        self,
        json: Mapping[str, Any],
        manifest: Manifest,
        objects: Mapping[str, bytes],
        constants: Bytes,
        threads: int | None = None,
    ) -> None:
        cpu.require(manifest.isa, manifest.features)
        self.manifest = dict(json)
        self._spec = manifest
        self._objects = dict(objects)
        self._constants = _aligned(constants)
        self.threads = cpu.default_threads() if threads is None else cpu.check_threads(threads)
        if manifest.pool is None:
            self.threads = 1
        self._pool: Pool | None = None
        if manifest.pool is not None:
            self._pool = get_pool(self._objects[manifest.pool], self.threads)
        self._image = load_objects({name: code for name, code in objects.items() if name != manifest.pool})
        self._check_symbols()
        self._entry = _ENTRY(self._image[manifest.entry_symbol])
        self._planner = Planner(manifest, self.threads)
        self._plans: dict[Any, Plan] = {}
        self._slabs = SlabPool()
        self._spills = SlabPool(FileSlab)
        self._lent = SlabPool()
        self._lock = threading.Lock()
        _all.add(self)
        self._flatten = Flattener(manifest.in_tree, manifest.arg_names, len(manifest.inputs))
        self._nest = unflattener(manifest.out_tree)
        self._readers = tuple(InputReader(spec) for spec in manifest.inputs)
        self._writers = tuple(OutputWriter(spec.element) for spec in manifest.outputs)
        self._plain = not manifest.dynamic and all(s.alias is None and not s.dynamic for s in manifest.outputs)
        self._counts = (ctypes.c_int64 * max(len(manifest.regions), 1))()
        self._header = self._frame_header()

    @classmethod
    def from_parts(
        cls,
        manifest: Mapping[str, Any],
        objects: Mapping[str, bytes],
        constants: bytes | bytearray | memoryview | Bytes = b"",
        threads: int | None = None,
    ) -> Executable:
        """The executable of code that was just generated.

        Args:
            manifest: see `dlc.runtime.manifest`; the object table and `constants.bytes` are filled in here.
            objects: object files by name.
            constants: packed constants; kept without a copy if they are an array at a multiple of 64.
            threads: of its kernels; by default DLC_NUM_THREADS, OMP_NUM_THREADS, or the CPUs at hand.
        """
        array = _as_bytes(constants)
        complete, _ = complete_manifest(manifest, objects, array.nbytes)
        return cls(complete, check_manifest(complete), dict(objects), array, threads)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to one file, whole or not at all."""
        write_artifact(path, self.manifest, self._objects, self._constants)

    def __reduce__(self) -> tuple[Any, ...]:
        # for processes that are spawned: the code travels, the memory it runs in does not
        return _rebuild, (self.manifest, self._objects, self._constants.tobytes(), self.threads)

    def __repr__(self) -> str:
        def show(specs: Sequence[Any]) -> str:
            return ", ".join(f"{s.name}: {s.element.name}[{', '.join(s.shape)}]" for s in specs)

        size = self._constants.nbytes + sum(map(len, self._objects.values()))
        spec = self._spec
        return (
            f"<dlc.Executable ({show(spec.inputs)}) -> ({show(spec.outputs)}); "
            f"{len(spec.kernels)} kernel calls, {size / 1e6:.1f} MB, {self.threads} threads>"
        )

    # -- the call ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            *args, **kwargs: nested as when the model was compiled; NumPy arrays, torch tensors on the CPU, DLPack
                objects, and Python numbers for tensors of rank 0. Strided or misaligned ones are copied first.
            out: where to write, nested as the result; by default fresh arrays.

        Returns:
            torch tensors if any input is one, else NumPy arrays, nested as the model's result.
        """
        return self._run(args, kwargs, out, 0, None)

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, profile: int, symbols: list[int] | None
    ) -> Any:
        """One call; with the address of profile words (two per kernel call, then one per region), and a list that gets
        the symbols' values.
        """
        inputs = self._flatten(args, kwargs)
        keep: list[Any] = []
        addresses = []
        shapes = []
        for read, value in zip(self._readers, inputs):
            address, shape = read(value, keep)
            addresses.append(address)
            shapes.append(shape)
        key: Any = tuple(shapes)
        values: dict[int, int] = {}
        if self._planner.value_inputs:
            values = {i: self._value(i, addresses[i], shapes[i]) for i in self._planner.value_inputs}
            key = (key, tuple(values.values()))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(key, tuple(shapes), values)
        pool = self._pool
        if pool is not None and not pool.running:
            pool.start()
        torch = _uses_torch(inputs)
        try:
            context = plan.idle.pop()
        except IndexError:
            context = self._context(plan)
        slab = self._slabs.take(plan.arena_bytes)
        spill = None
        try:
            if self._spec.spill_bytes:
                spill = self._spills.take(self._spec.spill_bytes)
                context.frame[_SPILL] = spill.base
            if context.base != slab.base:
                self._point(context, plan, slab.base)
            frame = context.frame
            spec = self._spec.frame
            frame[spec.inputs : spec.inputs + len(addresses)] = addresses
            frame[_ERROR] = 0
            frame[_PROFILE] = profile
            frame[_TIMES] = profile + 16 * len(self._spec.kernels) if profile else 0
            if self._plain and out is None:
                results, targets = self._allocate(plan, torch)
                frame[spec.outputs : spec.outputs + len(targets)] = targets
                status = self._entry(context.address)
                if status or frame[_ERROR]:
                    raise self._failure(status, frame[_ERROR])
            elif self._plain and (direct := self._direct(plan, addresses, out)) is not None:
                results, targets = direct
                frame[spec.outputs : spec.outputs + len(targets)] = targets
                status = self._entry(context.address)
                if status or frame[_ERROR]:
                    raise self._failure(status, frame[_ERROR])
            else:
                results = self._run_special(plan, context, inputs, addresses, out, torch)
            if symbols is not None:
                symbols[:] = frame[spec.symbols : spec.symbols + len(plan.symbols)]
        finally:
            self._slabs.give(slab)
            if spill is not None:
                self._spills.give(spill)
            plan.idle.append(context)
        return self._nest(results)

    def _allocate(self, plan: Plan, torch: bool) -> tuple[list[Any], list[int]]:
        make = fresh_tensor if torch else fresh_array
        results, targets = [], []
        for spec, planned in zip(self._spec.outputs, plan.outputs):
            assert planned.shape is not None
            if planned.size_bytes >= LENT_OUTPUT_BYTES:
                kept = self._lent
                result, address = lent_tensor(kept, spec.element, planned.shape, planned.size_bytes, torch=torch)
            else:
                result, address = make(spec.element, planned.shape, planned.size_bytes)
            results.append(result)
            targets.append(address)
        return results, targets

    def _direct(self, plan: Plan, addresses: list[int], out: Any) -> tuple[list[Any], list[int]] | None:
        """The places of out= and their addresses; None where anything is out of the ordinary, an error included."""
        given: list[Any] = [None] * len(self._writers)
        if not flatten_out(self._spec.out_tree, out, given):
            return None
        targets: list[int] = []
        busy = [(a, a + size) for a, size in zip(addresses, plan.input_bytes)]
        for place, write, planned in zip(given, self._writers, plan.outputs):
            target = write(place, planned.shape)
            if target is None:
                return None
            end = target + planned.size_bytes
            for low, high in busy:
                if target < high and low < end:
                    return None
            busy.append((target, end))
            targets.append(target)
        return given, targets

    def _run_special(
        self, plan: Plan, context: Context, inputs: Sequence[Any], addresses: list[int], out: Any, torch: bool
    ) -> list[Any]:
        """The call with out=, aliases or dynamic outputs."""
        frame, layout, specs = context.frame, self._spec.frame, self._spec.outputs
        given = self._given(out, plan) if out is not None else [None] * len(specs)
        busy = [(a, a + plan.input_bytes[i]) for i, a in enumerate(addresses)]
        make = fresh_tensor if torch else fresh_array
        results: list[Any] = [None] * len(specs)
        targets = [0] * len(specs)
        after: list[tuple[Any, int, int]] = []  # array to fill, from address, bytes
        for index, (spec, planned) in enumerate(zip(specs, plan.outputs)):
            if planned.shape is None:
                continue
            size = planned.size_bytes
            if spec.alias is not None and spec.alias[0] == "input" and self._spec.inputs[spec.alias[1]].donate:
                source = spec.alias[1]
                results[index] = self._donated(inputs[source], source, spec, planned.shape, torch)
                targets[index] = addresses[source]
            else:
                place = given[index]
                target = 0 if place is None else self._address(place)
                overlaps = any(target < high and low < target + size for low, high in busy)
                if place is not None and not overlaps:
                    results[index], targets[index] = place, target
                    busy.append((target, target + size))
                else:
                    results[index], targets[index] = make(spec.element, planned.shape, size)
            if given[index] is not None and given[index] is not results[index]:
                after.append((given[index], targets[index], size))
                # the memory that native code writes must live until it is copied
                after_keep = results[index]
                results[index] = given[index]
                inputs = (*inputs, after_keep)
            if spec.alias is not None and spec.alias[0] == "input" and targets[index] != addresses[spec.alias[1]]:
                copy_bytes(targets[index], addresses[spec.alias[1]], size)
            elif spec.alias is not None and spec.alias[0] == "constant":
                copy_bytes(targets[index], array_address(self._constants) + spec.alias[1], size)
        frame[layout.outputs : layout.outputs + len(targets)] = targets
        for slot in range(layout.dynamic, layout.dynamic + len(self._spec.dynamic)):
            frame[slot] = 0
        status = self._entry(context.address)
        error = frame[_ERROR]
        failed = bool(status or error)
        owned = self._release_dynamic(frame, plan, failed)
        if failed:
            raise self._failure(status, error)
        for index, spec in enumerate(specs):
            if spec.alias is not None and spec.alias[0] == "output":
                copy_bytes(targets[index], targets[spec.alias[1]], plan.outputs[index].size_bytes)
            elif spec.dynamic:
                made = self._adopt(index, owned, frame, torch)
                if given[index] is not None:
                    self._fits(index, given[index], tuple(made.shape))
                    copy_bytes(self._address(given[index]), self._address(made), _nbytes(made))
                    made = given[index]
                results[index] = made
        for place, source_address, size in after:
            copy_bytes(self._address(place), source_address, size)
        return results

    def _release_dynamic(self, frame: Any, plan: Plan, failed: bool) -> dict[int, int]:
        """Free what native code allocated for itself; what it allocated for outputs is returned, by output."""
        layout = self._spec.frame
        owned = {
            index: frame[layout.outputs + index]
            for index, planned in enumerate(plan.outputs)
            if planned.shape is None and frame[layout.outputs + index]
        }
        keep = set() if failed else set(owned.values())
        mine = {frame[slot] for slot in range(layout.dynamic, layout.dynamic + len(self._spec.dynamic))}
        if failed:
            mine |= set(owned.values())
        for address in mine - keep - {0}:
            libc().free(address)
        return owned

    def _adopt(self, index: int, owned: dict[int, int], frame: Any, torch: bool) -> Any:
        """The dynamic output that native code left in the frame."""
        spec, layout = self._spec.outputs[index], self._spec.frame
        symbols = frame[layout.symbols : layout.symbols + len(self._spec.symbols)]
        address = owned.pop(index, 0)
        raw = None
        shape = self._planner.output_shape(index, symbols)
        size = math.prod(shape) * spec.element.bytes
        if any(dim < 0 for dim in shape) or size > MAX_BYTES:
            reason = f"its shape would be {shape}"
        elif address == 0 and size:
            reason = "it has no memory"
        elif address in owned.values():
            reason = "another output has the same memory"
        else:
            raw = adopt(address, size) if address else np.empty(0, np.uint8)
            return as_tensor(raw, spec.element, shape, torch=torch)
        raise BadDynamicOutput(message=reason, name=spec.name, reason=reason)

    def _given(self, out: Any, plan: Plan) -> list[Any]:
        given: list[Any] = [None] * len(self._spec.outputs)
        if not flatten_out(self._spec.out_tree, out, given):
            reason = "it is nested otherwise than the result"
            raise BadOut(name=self._spec.outputs[0].name, reason=reason, expected="the result's types")
        for index, planned in enumerate(plan.outputs):
            if given[index] is not None:
                self._fits(index, given[index], planned.shape)
        places = [(self._address(g), self._address(g) + _nbytes(g), i) for i, g in enumerate(given) if g is not None]
        places.sort()
        for (_, end, _), (start, stop, index) in zip(places, places[1:]):
            if start < end and stop > start:
                name = self._spec.outputs[index].name
                raise BadOut(name=name, reason="it overlaps another output", expected="distinct memory")
        return given

    def _fits(self, index: int, place: Any, shape: tuple[int, ...] | None) -> None:
        spec = self._spec.outputs[index]
        expected = f"{spec.element.name}{list(shape) if shape is not None else list(spec.shape)}"
        if isinstance(place, np.ndarray):
            flags = place.flags
            usable = flags.c_contiguous and flags.aligned and flags.writeable
            typed = accepts(spec.element, place.dtype)
        elif _is_torch(place):
            usable = place.is_cpu and place.is_contiguous() and not (place.is_leaf and place.requires_grad)
            typed = str(place.dtype) == f"torch.{spec.element.torch}"
        else:
            raise BadOut(name=spec.name, reason=f"it is a {type(place).__name__}", expected=expected)
        if not usable:
            raise BadOut(name=spec.name, reason="it is strided, misaligned, or cannot be written", expected=expected)
        if not typed or (shape is not None and tuple(place.shape) != shape):
            found = f"{str(place.dtype).removeprefix('torch.')}{list(place.shape)}"
            raise BadOut(name=spec.name, reason=f"it is {found}", expected=expected)

    def _donated(self, value: Any, source: int, spec: Any, shape: tuple[int, ...], torch: bool) -> Any:
        """The input itself as the result that was written into it."""
        name = self._spec.inputs[source].name
        writable = _is_torch(value) or (isinstance(value, np.ndarray) and value.flags.writeable)
        if not writable:
            raise UnusableInput(name=name, reason="it is updated in place, so it must be a writable array or tensor")
        contiguous = value.is_contiguous() if _is_torch(value) else value.flags.c_contiguous and value.flags.aligned
        if not contiguous:
            raise UnusableInput(name=name, reason="it is updated in place, so it must be C-contiguous")
        if _is_torch(value):
            same = value.detach().reshape(shape)
            return same if torch else same.numpy()
        same = value.reshape(shape)
        return sys.modules["torch"].from_numpy(same) if torch else same

    @staticmethod
    def _address(value: Any) -> int:
        return array_address(value) if isinstance(value, np.ndarray) else int(value.data_ptr())

    def _value(self, index: int, address: int, shape: Sequence[int]) -> int:
        if len(shape):
            spec = self._spec.inputs[index]
            raise WrongArgumentCount(reason=f"input '{spec.name}' is no scalar", expected="a number of rank 0")
        element = self._spec.inputs[index].element
        kind = {1: ctypes.c_int8, 2: ctypes.c_int16, 4: ctypes.c_int32, 8: ctypes.c_int64}[element.bytes]
        value = int(kind.from_address(address).value)
        return value % (1 << 8 * element.bytes) if element.numpy.kind == "u" else value

    # -- preparation ---------------------------------------------------------------------------------------------------

    def _make_plan(self, key: Any, shapes: tuple[Sequence[int], ...], values: dict[int, int]) -> Plan:
        plain = tuple(tuple(int(size) for size in shape) for shape in shapes)
        plan = self._planner.plan(plain, values)
        with self._lock:
            while len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[(plain, tuple(values.values())) if values else plain] = plan
        return plan

    def _frame_header(self) -> tuple[tuple[int, int], ...]:
        pool = self._pool
        malloc, free = (ctypes.cast(getattr(libc(), name), ctypes.c_void_p).value for name in ("malloc", "free"))
        return (
            (_ABI, ABI),
            (_PARALLEL_FOR, pool.parallel_for if pool else 0),
            (_POOL, pool.state if pool else 0),
            (_THREADS, self.threads),
            (_CONSTANTS, array_address(self._constants)),
            (_MALLOC, malloc or 0),
            (_FREE, free or 0),
            (_COUNTS, ctypes.addressof(self._counts)),
        )

    def _context(self, plan: Plan) -> Context:
        context = new_context(self._spec.frame.size)
        frame = context.frame
        for word, value in self._header:
            frame[word] = value
        frame[_SCRATCH_BYTES] = plan.scratch_bytes
        at = self._spec.frame.symbols
        frame[at : at + len(plan.symbols)] = plan.symbols
        return context

    def _point(self, context: Context, plan: Plan, base: int) -> None:
        at = self._spec.frame.buffers
        context.frame[at : at + len(plan.offsets)] = [base + offset for offset in plan.offsets]
        context.frame[_SCRATCH] = base + plan.scratch_at
        context.base = base

    def _check_symbols(self) -> None:
        spec = self._spec
        if not self._image.is_code(spec.entry_symbol):
            raise BadManifest(field="entry.symbol", reason=f"no object defines the function '{spec.entry_symbol}'")
        for index, kernel in enumerate(spec.kernels):
            if kernel.symbol and not self._image.is_code(kernel.symbol):
                field = f"kernels[{index}].symbol"
                raise BadManifest(field=field, reason=f"no object defines the function '{kernel.symbol}'")

    def _failure(self, status: int, error: int) -> Exception:
        if 0 < error <= len(self._spec.checks):
            check = self._spec.checks[error - 1]
            return RuntimeCheckFailed(check.loc or None, message=check.message, check_code=check.code)
        return NativeFault(message=f"status {status}", status=status if not error else f"error word {error}")

    @property
    def regions(self) -> tuple[Region, ...]:
        """The control graph; the first is the program."""
        return self._spec.regions

    @property
    def visits(self) -> tuple[int, ...]:
        """How often each region ran since it was loaded, over all calls; nothing for a program without control."""
        return tuple(self._counts[: len(self._spec.regions)]) if len(self._spec.regions) > 1 else ()

    def profile(self, *args: Any, repeat: int = 10, warmup: int = 2, **kwargs: Any) -> Profile:
        """Run the model `repeat` times and report each kernel call: time, GFLOP/s, GB/s and share.

        Args:
            *args, **kwargs: as for a call.
            repeat: measured runs; each kernel's median counts.
            warmup: runs before.
        """
        return measure(self, args, kwargs, repeat, warmup)


def load(path: str | os.PathLike[str], threads: int | None = None) -> Executable:
    """The executable saved at `path`.

    Raises:
        NotAnArtifact, DamagedArtifact, WrongVersion, BadManifest, MissingCpuFeatures: it cannot be run here.
    """
    artifact = read_artifact(path)
    return Executable(artifact.json, artifact.manifest, artifact.objects, artifact.constants, threads)


def _rebuild(manifest: dict[str, Any], objects: dict[str, bytes], constants: bytes, threads: int) -> Executable:
    return Executable.from_parts(manifest, objects, constants, threads)


def _uses_torch(inputs: Sequence[Any]) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    tensor = getattr(torch, "Tensor", ())
    for value in inputs:
        if isinstance(value, tensor):
            return True
    return False


def _is_torch(value: Any) -> bool:
    return _uses_torch((value,))


def _nbytes(value: Any) -> int:
    return int(value.nbytes)


def _as_bytes(constants: bytes | bytearray | memoryview | Bytes) -> Bytes:
    if isinstance(constants, np.ndarray):
        return np.ascontiguousarray(constants).reshape(-1).view(np.uint8)
    return np.frombuffer(constants, np.uint8) if len(constants) else np.empty(0, np.uint8)


def empty_constants(size_bytes: int) -> Bytes:
    """Zeroed memory, u8[n], at a multiple of 64 and with large pages: what `from_parts` takes without a copy."""
    if size_bytes == 0:
        return np.empty(0, np.uint8)
    slab = Slab(size_bytes)
    block = (ctypes.c_uint8 * size_bytes).from_address(slab.base)
    block._slab = slab  # type: ignore[attr-defined]  # keeps the mapping alive as long as the array
    array: Bytes = np.ctypeslib.as_array(block)
    return array


def _aligned(constants: Bytes) -> Bytes:
    """The same bytes at a multiple of 64, as kernels expect."""
    if constants.nbytes == 0 or array_address(constants) % 64 == 0:
        return constants
    array = empty_constants(constants.nbytes)
    array[:] = constants
    return array


_all: weakref.WeakSet[Executable] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for executable in list(_all):
        executable._lock = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)
