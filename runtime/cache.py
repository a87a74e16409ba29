"""The kernel cache: object code on disk under the digest of what it was compiled from.

Each entry is one file, written beside its place and renamed into it, with a digest of its own in front: a half-written
or damaged entry is a miss, never wrong code.  Entries touched longest ago go first when the limit is passed.  Nothing
here raises: a cache that cannot be read or written is only a lost speed-up.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

MAGIC: Final = b"DLCKRN\x01\n"
LIMIT_BYTES: Final = 1 << 30
_EVERY: Final = 64
"""Puts between two looks at the total size; a look reads the whole directory."""
_STALE_SECONDS: Final = 3600.0
"""A temporary file of this age belongs to a process that died."""


def default_folder() -> Path:
    """DLC_CACHE_DIR, else `dlc` in the XDG cache folder."""
    given = os.environ.get("DLC_CACHE_DIR")
    if given:
        return Path(given)
    xdg = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / ".cache"
    except RuntimeError:  # no home directory
        base = Path(tempfile.gettempdir()) / f"dlc-cache-{os.getuid()}"
    return base / "dlc"


class KernelCache:
    """Bytes by key, on disk; safe for any number of processes and threads at once.

    Attributes:
        folder: where the entries lie.
        limit_bytes: size that all entries together may have.
        hits, misses: of this object.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self._puts = 0

    def get(self, key: str) -> bytes | None:
        """What was put under `key`, or None."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            self.misses += 1
            return None
        at = len(MAGIC)
        body = data[at + 32 :]
        if data[:at] != MAGIC or data[at : at + 32] != _digest(key, body):
            _remove(path)
            self.misses += 1
            return None
        try:
            os.utime(path)
        except OSError:
            pass
        self.hits += 1
        return body

    def put(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`, if the disk permits."""
        path = self._path(key)
        if len(data) > self.limit_bytes // 2:
            return
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            with open(handle, "wb") as file:
                file.write(MAGIC + _digest(key, data) + data)
            os.replace(temporary, path)
            temporary = None
        except OSError:
            return
        finally:
            if temporary is not None:
                _remove(Path(temporary))
        self._puts += 1
        if self._puts % _EVERY == 1:
            self.trim()

    def trim(self) -> None:
        """Remove the entries touched longest ago until the limit holds."""
        entries: list[tuple[float, int, Path]] = []
        newest = 0.0
        try:
            for folder in self.folder.iterdir():
                if not folder.is_dir():
                    continue
                for item in os.scandir(folder):
                    try:
                        info = item.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    entries.append((info.st_mtime, info.st_size, Path(item.path)))
                    newest = max(newest, info.st_mtime)
        except OSError:
            pass
        stale = [path for time, _, path in entries if path.suffix == ".part" and newest - time > _STALE_SECONDS]
        for path in stale:
            _remove(path)
        kept = sorted(entry for entry in entries if entry[2].suffix == ".o")
        total = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if total <= self.limit_bytes:
                break
            _remove(path)
            total -= size

    def clear(self) -> None:
        """Remove every entry."""
        limit, self.limit_bytes = self.limit_bytes, -1
        self.trim()
        self.limit_bytes = limit

    def size_bytes(self) -> int:
        """What the entries take now."""
        try:
            return sum(path.stat().st_size for path in self.folder.glob("*/*.o"))
        except OSError:
            return 0

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.o"


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() + body).digest()


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass
