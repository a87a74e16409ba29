"""Files that are written whole or not at all: what was there stays until the new one is complete on disk."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from dlc.runtime.errors import CannotWrite


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place at `path`, through links, when the block ends without an error.

    Raises:
        CannotWrite: no room, no right, no such folder, or something else than a file is there; what is there is unchanged.
    """
    target = os.path.realpath(path)
    temporary: str | None = None
    try:
        if os.path.lexists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            raise CannotWrite(path=os.fspath(path), reason="it exists and is no regular file")
        folder, name = os.path.split(target)
        handle, temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", suffix=".part", dir=folder)
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(folder)
    except OSError as error:
        raise CannotWrite(path=os.fspath(path), reason=error.strerror or str(error)) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sync_folder(folder: str) -> None:
    """The new name survives a power cut; some file systems cannot, which is no reason to fail."""
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


__all__ = ["whole_file"]
