"""Tensors in and out: NumPy arrays, torch tensors and DLPack objects as addresses, without copying where possible.

torch is never imported here: a torch tensor can only arrive where the caller has imported torch already.
Copies are made for inputs that are not C-contiguous or not aligned to their element, and for nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from dlc.runtime.arena import SlabPool
from dlc.runtime.dtypes import ELEMENT_TYPES, ElementType, accepts, name_of, result_dtype
from dlc.runtime.elf import libc
from dlc.runtime.errors import NotEnoughMemory, UnusableInput, WrongDtype
from dlc.runtime.manifest import TensorSpec

_char_at: Any = ctypes.c_char.from_buffer
_address_of = ctypes.addressof

LENT_OUTPUT_BYTES: Final = 1 << 23
"""Results from this size on lie in memory that is kept; smaller ones the C library keeps by itself."""
ALIGNED_OUTPUT_BYTES: Final = 1 << 14
"""Results from this size on start at a cache line: stores of whole vectors are then never split."""


def array_address(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element; any number for an empty array."""
    try:
        return int(_address_of(_char_at(array)))  # four times faster than `.ctypes.data`, but needs a writable buffer
    except (TypeError, ValueError, BufferError):
        return array.ctypes.data


class InputReader:
    """Checks one input's type and layout, and finds its memory."""

    __slots__ = ("_dtype", "_torch_dtype", "element", "is_scalar", "name")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.element = spec.element
        self.is_scalar = not spec.shape
        self._dtype = spec.element.numpy
        self._torch_dtype: Any = None  # filled in when torch is seen for the first time

    def __call__(self, value: Any, keep: list[Any]) -> tuple[int, Sequence[int]]:
        """Address and shape of `value`; whatever must outlive the call is appended to `keep`."""
        if type(value) is np.ndarray:
            if value.dtype is not self._dtype:
                self._check_dtype(value)
            flags = value.flags
            if not (flags.c_contiguous and flags.aligned):
                value = np.array(value, order="C", copy=True)
                keep.append(value)
            return array_address(value), value.shape
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
            return self._torch(torch, value, keep)
        array = self._array(value)
        keep.append(array)
        return self(array, keep)

    def _check_dtype(self, array: np.ndarray[Any, Any]) -> None:
        if not accepts(self.element, array.dtype):
            raise WrongDtype(name=self.name, found=name_of(array.dtype), expected=self.element.name)

    def _torch(self, torch: Any, tensor: Any, keep: list[Any]) -> tuple[int, Sequence[int]]:
        if self._torch_dtype is None:
            self._torch_dtype = getattr(torch, self.element.torch or "", ())
        if tensor.dtype is not self._torch_dtype:
            raise WrongDtype(name=self.name, found=torch_name(tensor.dtype), expected=self.element.name)
        if not tensor.is_cpu or tensor.layout is not torch.strided:
            where = tensor.device if not tensor.is_cpu else tensor.layout
            raise UnusableInput(name=self.name, reason=f"it is a tensor of {where}, expected a dense one on the CPU")
        try:
            if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
                tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
                keep.append(tensor)
            address: int = tensor.data_ptr()
            if address % self.element.bytes:
                tensor = tensor.detach().clone()
                keep.append(tensor)
                address = tensor.data_ptr()
        except RuntimeError as error:
            reason = f"its memory cannot be read ({str(error).splitlines()[0]})"
            raise UnusableInput(name=self.name, reason=reason) from None
        if address == 0 and tensor.numel():
            raise UnusableInput(name=self.name, reason="it is a tensor without memory, for instance a fake one")
        return address, tensor.shape

    def _array(self, value: Any) -> np.ndarray[Any, Any]:
        """A plain array of a NumPy scalar or subclass, a Python number, or anything that speaks DLPack."""
        if isinstance(value, np.ma.MaskedArray):
            raise UnusableInput(name=self.name, reason="it is a masked array, and the mask would be ignored")
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            # byte order and the like: the plain path compares identities first
            return array.view(self._dtype) if array.dtype == self._dtype else array
        if isinstance(value, (bool, int, float, complex)) and self.is_scalar:
            return self._number(value)
        if hasattr(value, "__dlpack__"):
            try:
                return np.from_dlpack(value)
            except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                raise UnusableInput(name=self.name, reason=f"DLPack: {error}") from None
        if hasattr(value, "__array_interface__"):
            return np.asarray(value)
        raise UnusableInput(
            name=self.name,
            reason=f"a {type(value).__name__} is no tensor; pass a NumPy array, a torch tensor or a DLPack object",
        )

    def _number(self, value: complex) -> np.ndarray[Any, Any]:
        kinds: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
        kind = "f" if self.element.name == "bf16" else self._dtype.kind
        allowed = kinds.get(kind, (int, float, complex))
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "b") or self.element.name == "bf16":
            raise WrongDtype(name=self.name, found=f"Python {type(value).__name__}", expected=self.element.name)
        try:
            return np.array(value, self._dtype)
        except OverflowError:
            raise UnusableInput(name=self.name, reason=f"{value} does not fit in {self.element.name}") from None


class OutputWriter:
    """Finds the memory of a place given for one output."""

    __slots__ = ("_dtype", "_torch_dtype", "_torch_tensor", "element")

    def __init__(self, element: ElementType) -> None:
        self.element = element
        self._dtype = result_dtype(element)
        self._torch_dtype: Any = None
        self._torch_tensor: Any = None

    def __call__(self, place: Any, shape: tuple[int, ...] | None) -> int | None:
        """Its address; None unless it is plainly fit: a contiguous, writable array or tensor of the type and shape."""
        if type(place) is np.ndarray:
            flags = place.flags
            fit = place.dtype == self._dtype and place.shape == shape
            return array_address(place) if fit and flags.c_contiguous and flags.aligned and flags.writeable else None
        if self._torch_tensor is None and (torch := sys.modules.get("torch")) is not None:
            self._torch_tensor = torch.Tensor
            self._torch_dtype = getattr(torch, self.element.torch or "", None)
        if type(place) is not self._torch_tensor or place.dtype is not self._torch_dtype or place.shape != shape:
            return None
        if not place.is_cpu or place.requires_grad or not place.is_contiguous():
            return None
        address = int(place.data_ptr())
        return None if address % self.element.bytes else address


def torch_name(dtype: Any) -> str:
    """The compiler's name of a torch type."""
    plain = str(dtype).removeprefix("torch.")
    return next((e.name for e in ELEMENT_TYPES.values() if e.torch == plain), plain)


def fresh_array(element: ElementType, shape: tuple[int, ...], size_bytes: int) -> tuple[np.ndarray[Any, Any], int]:
    """A new, uninitialised array and its address."""
    dtype = result_dtype(element)
    try:
        if size_bytes < ALIGNED_OUTPUT_BYTES:
            array = np.empty(shape, dtype)
            return array, array_address(array)
        raw = np.empty(size_bytes + 64, np.uint8)
    except (MemoryError, ValueError):
        raise NotEnoughMemory(needed=size_bytes, what="an output") from None
    address = array_address(raw)
    shift = -address % 64
    return raw[shift : shift + size_bytes].view(dtype).reshape(shape), address + shift


def fresh_tensor(element: ElementType, shape: tuple[int, ...], size_bytes: int) -> tuple[Any, int]:
    """A new, uninitialised torch tensor and its address; the caller has imported torch."""
    torch = sys.modules["torch"]
    try:
        tensor = torch.empty(shape, dtype=getattr(torch, element.torch or "float32"))
    except (RuntimeError, MemoryError):
        raise NotEnoughMemory(needed=size_bytes, what="an output") from None
    return tensor, tensor.data_ptr()


class _Lent:
    """Memory of a pool of slabs, handed back with the last array on it."""

    __slots__ = ("__array_interface__", "_pool", "_slab")

    def __init__(self, pool: SlabPool, size_bytes: int) -> None:
        self._pool, self._slab = pool, pool.take(size_bytes)
        self.__array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (self._slab.base, False),
        }

    def __del__(self) -> None:
        if (slab := getattr(self, "_slab", None)) is not None:
            self._pool.give(slab)


def lent_tensor(
    pool: SlabPool, element: ElementType, shape: tuple[int, ...], size_bytes: int, *, torch: bool
) -> tuple[Any, int]:
    """A new array or tensor on memory of earlier results that are gone: the system need not map and clear it again."""
    raw = np.asarray(_Lent(pool, size_bytes))
    return as_tensor(raw, element, shape, torch=torch), array_address(raw)


class _Owned:
    """Memory from the C library's malloc, freed with the last array on it."""

    __slots__ = ("__array_interface__", "_free", "address")

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self._free = libc().free
        self.__array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
        }

    def __del__(self) -> None:
        self._free(self.address)


def adopt(address: int, size_bytes: int) -> np.ndarray[Any, Any]:
    """The malloc'ed block as bytes; freed when the last array on it is gone."""
    return np.asarray(_Owned(address, size_bytes))


def as_tensor(raw: np.ndarray[Any, Any], element: ElementType, shape: tuple[int, ...], *, torch: bool) -> Any:
    """`raw` bytes (u8[n]) as an array, or as a torch tensor on the same memory."""
    if not torch:
        return raw.view(result_dtype(element)).reshape(shape)
    module = sys.modules["torch"]
    tensor = module.from_numpy(raw).view(getattr(module, element.torch or "float32"))
    return tensor.reshape(shape)


def copy_bytes(target: int, source: int, size_bytes: int) -> None:
    """memmove, for results that are copies of something."""
    if size_bytes:
        ctypes.memmove(target, source, size_bytes)
