r"""The artifact file: one `.dlc` with manifest, object code and packed constants.

    bytes 0-7     magic "DLCART\x01\n"
    bytes 8-15    u64, length of the manifest in bytes, little endian
    ...           the manifest, JSON in UTF-8, then zeros up to the next multiple of 4096: the data begins here
    ...           objects at the offsets that the manifest gives, each at a multiple of 64
    ...           constants, at the next multiple of 4096 after the last object
    last 32       digest: SHA-256 of everything before the data and of the SHA-256 of each 4 MiB of the data

The digest is a tree so that several threads can verify it; it guards against damage, not against malice: an artifact
is code, trusted like a shared library.  Among the objects is one that is no code, "interface": the digest of the
manifest without its object table, so that code is never called by the description of other code.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dlc.runtime.cpu import available_cpus
from dlc.runtime.errors import CannotRead, DamagedArtifact, NotAnArtifact
from dlc.runtime.manifest import Manifest, ObjectEntry, check_manifest, check_object_names
from dlc.runtime.whole_file import whole_file

MAGIC: Final = b"DLCART\x01\n"
CHUNK: Final = 1 << 22
ALIGN_OBJECT: Final = 64
ALIGN_DATA: Final = 4096
DIGEST_BYTES: Final = 32
MAX_HEADER: Final = 1 << 28
INTERFACE: Final = "interface"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that was read and verified.

    Attributes:
        json: the manifest as it stands in the file.
        manifest: the same, checked and typed.
        objects: object code by name, without "interface".
        constants: u8[n], read only, mapped from the file.
    """

    json: dict[str, Any]
    manifest: Manifest
    objects: dict[str, bytes]
    constants: Bytes


def complete_manifest(
    manifest: Mapping[str, Any], objects: Mapping[str, bytes], constants_bytes: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`manifest` with its object table, and all objects in the order of that table, "interface" included.

    Raises:
        BadManifest: it does not describe `objects`.
    """
    complete = {key: value for key, value in manifest.items() if key != "objects"}
    complete["constants"] = {**manifest.get("constants", {}), "bytes": constants_bytes}
    plain = {name: bytes(code) for name, code in objects.items() if name != INTERFACE}
    everything = {**plain, INTERFACE: interface_digest(complete)}
    table, at = [], 0
    for name, code in everything.items():
        digest = hashlib.sha256(code).hexdigest()
        table.append({"name": name, "offset": at, "bytes": len(code), "sha256": digest})
        at = _up(at + len(code), ALIGN_OBJECT)
    complete["objects"] = table
    check_object_names(check_manifest(complete), frozenset(everything))
    return complete, everything


def interface_digest(manifest: Mapping[str, Any]) -> bytes:
    """Digest of all that native code relies on: the manifest without the object table."""
    rest = {key: value for key, value in manifest.items() if key != "objects"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).digest()


def write_artifact(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], objects: Mapping[str, bytes], constants: Bytes
) -> None:
    """Write the file whole or not at all: what was at `path` stays until the new file is complete on disk.

    Raises:
        CannotWrite: no room, no right, no such folder; the old file, if any, is unchanged.
    """
    complete, everything = complete_manifest(manifest, objects, constants.nbytes)
    header = _header(complete)
    with whole_file(path) as file:
        hasher = _TreeHasher(header)
        file.write(header)
        for piece in _pieces(complete["objects"], everything, constants):
            file.write(piece)
            hasher.update(piece)
        file.write(hasher.digest())


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read and verify a file; its constants stay mapped, and are shared between processes.

    Raises:
        CannotRead, NotAnArtifact, DamagedArtifact, WrongVersion, BadManifest.
    """
    shown = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotAnArtifact(path=shown, reason="it is no regular file")
            if size < len(MAGIC) + 8 + DIGEST_BYTES:
                raise NotAnArtifact(path=shown, reason=f"it has only {size} bytes")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CannotRead(path=shown, reason=getattr(error, "strerror", None) or str(error)) from None
    return parse_artifact(np.frombuffer(memory, np.uint8), shown)


def parse_artifact(data: Bytes, path: str = "(memory)") -> Artifact:
    """Verify the bytes of a file, u8[n]; see `read_artifact`."""
    view = memoryview(data)  # type: ignore[arg-type]  # NumPy's arrays are buffers from Python 3.12 on, for mypy
    if len(view) < len(MAGIC) + 8 + DIGEST_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
        if bytes(view[:6]) == MAGIC[:6]:
            raise DamagedArtifact(path=path, reason="its first bytes name an unknown format, or it is cut off")
        raise NotAnArtifact(path=path, reason="it begins with other bytes")
    (length,) = struct.unpack_from("<Q", view, len(MAGIC))
    start = _up(len(MAGIC) + 8 + length, ALIGN_DATA)
    if length > MAX_HEADER or start + DIGEST_BYTES > len(view):
        raise DamagedArtifact(path=path, reason="it is shorter than its header says")
    body = view[start : len(view) - DIGEST_BYTES]
    if tree_digest(view[:start], body) != bytes(view[len(view) - DIGEST_BYTES :]):
        raise DamagedArtifact(path=path, reason="its digest does not match its contents")
    try:
        raw = json.loads(bytes(view[len(MAGIC) + 8 : len(MAGIC) + 8 + length]).decode("utf-8"))
    except (ValueError, RecursionError, MemoryError):
        raise DamagedArtifact(path=path, reason="its manifest is no JSON") from None
    manifest = check_manifest(raw)
    objects = {entry.name: _object(entry, body, path) for entry in manifest.objects}
    try:
        digest = interface_digest(raw)
    except (ValueError, RecursionError, MemoryError):
        raise DamagedArtifact(path=path, reason="its manifest cannot be hashed") from None
    if objects.pop(INTERFACE, None) != digest:
        raise DamagedArtifact(path=path, reason="its code was compiled for another manifest")
    constants_at = _up(max((e.offset + e.bytes for e in manifest.objects), default=0), ALIGN_DATA)
    if constants_at + manifest.constants_bytes != len(body):
        raise DamagedArtifact(path=path, reason="its length is not that of its sections")
    check_object_names(manifest, frozenset(objects))
    constants = data[start + constants_at : start + constants_at + manifest.constants_bytes]
    return Artifact(raw, manifest, objects, constants)


def reseal(data: bytes) -> bytes:
    """`data`, the bytes of an artifact, with a digest that fits; for tests that change what lies before it."""
    (length,) = struct.unpack_from("<Q", data, len(MAGIC))
    start = _up(len(MAGIC) + 8 + length, ALIGN_DATA)
    body = data[start : len(data) - DIGEST_BYTES]
    return data[: len(data) - DIGEST_BYTES] + tree_digest(memoryview(data[:start]), memoryview(body))


def replace_manifest(data: bytes, manifest: object) -> bytes:
    """`data` with another manifest and a digest that fits; for tests."""
    (length,) = struct.unpack_from("<Q", data, len(MAGIC))
    start = _up(len(MAGIC) + 8 + length, ALIGN_DATA)
    return reseal(_header(manifest) + data[start:])


def tree_digest(header: memoryview, body: memoryview) -> bytes:
    """The file's digest; chunks are hashed by several threads, as hashing runs without the interpreter lock."""
    starts = range(0, len(body), CHUNK)

    def one(at: int) -> bytes:
        return hashlib.sha256(body[at : at + CHUNK]).digest()

    if len(starts) < 4:
        parts = [one(at) for at in starts]
    else:
        try:
            with ThreadPoolExecutor(min(available_cpus(), 8)) as pool:
                parts = list(pool.map(one, starts))
        except RuntimeError:  # no threads to be had, for instance while the interpreter goes down
            parts = [one(at) for at in starts]
    return _root(header, parts)


class _TreeHasher:
    """The same digest from pieces, while writing."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._parts: list[bytes] = []
        self._current = hashlib.sha256()
        self._room = CHUNK

    def update(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
        while len(view) >= self._room:
            self._current.update(view[: self._room])
            view = view[self._room :]
            self._parts.append(self._current.digest())
            self._current, self._room = hashlib.sha256(), CHUNK
        self._current.update(view)
        self._room -= len(view)

    def digest(self) -> bytes:
        last = [self._current.digest()] if self._room < CHUNK else []
        return _root(memoryview(self._header), [*self._parts, *last])


def _root(header: memoryview, parts: list[bytes]) -> bytes:
    return hashlib.sha256(b"".join((hashlib.sha256(header).digest(), *parts))).digest()


def _header(manifest: object) -> bytes:
    text = json.dumps(manifest, separators=(",", ":")).encode()
    head = MAGIC + struct.pack("<Q", len(text)) + text
    return head.ljust(_up(len(head), ALIGN_DATA), b"\0")


def _pieces(
    table: list[dict[str, Any]], objects: Mapping[str, bytes], constants: Bytes
) -> Iterator[bytes | memoryview]:
    at = 0
    for entry in table:
        yield bytes(entry["offset"] - at)
        yield objects[entry["name"]]
        at = entry["offset"] + entry["bytes"]
    yield bytes(_up(at, ALIGN_DATA) - at)
    yield memoryview(constants)  # type: ignore[arg-type]


def _object(entry: ObjectEntry, body: memoryview, path: str) -> bytes:
    if entry.offset + entry.bytes > len(body):
        raise DamagedArtifact(path=path, reason=f"the object '{entry.name}' lies outside the file")
    code = bytes(body[entry.offset : entry.offset + entry.bytes])
    if hashlib.sha256(code).hexdigest() != entry.sha256:
        raise DamagedArtifact(path=path, reason=f"the object '{entry.name}' does not match its digest")
    return code


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


__all__ = ["Artifact", "parse_artifact", "read_artifact", "replace_manifest", "reseal", "write_artifact"]
