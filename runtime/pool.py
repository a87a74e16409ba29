"""Threads that run compiled kernels: Python makes them, native code (the artifact's "pool" object) runs them.

One pool serves all executables of a process that ask for the same number of threads.  A worker is a daemon thread of
Python inside one native call, `worker_loop`, which holds no interpreter lock; it spins for some 50 us after a job and
then sleeps in the kernel.  The pool starts its workers at the first call that can use them, stops them before the
interpreter goes down, and starts them again in a forked child (threads do not survive a fork, memory does).
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import mmap
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from dlc.runtime.cpu import available_cpus, check_threads, default_threads
from dlc.runtime.elf import Image, load_objects
from dlc.runtime.errors import BadObject, NativeMemory

# The state block that the native code shares with us; codegen/pool.py documents it, this mirrors it.
_THREADS_AT: Final = 256
_SPIN_AT: Final = 264
_NEXT_AT: Final = 320
_LINE: Final = 64
_SPIN_POLLS: Final = 2000
_SPIN_POLLS_CROWDED: Final = 20
"""With more threads than CPUs, a spinning worker keeps a working one from running."""

_JOIN_SECONDS: Final = 2.0
"""Patience with one worker at exit; longer only if a daemon thread of the user is still inside a kernel."""

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT}
_DEFERRABLE: Final = signal.valid_signals() - _FAULTS

_FUNCTIONS = ("parallel_for", "worker_loop", "pool_stop")
_WORKER_LOOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_POOL_STOP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Pool:
    """A team of `threads` threads, the caller included.

    Attributes:
        threads: size of the team.
        parallel_for: address of the native function, for frame word 1.
        state: address of the shared block, for frame word 2; 0 for a team of one.
    """

    def __init__(self, image: Image, threads: int) -> None:
        self.threads = threads
        self.parallel_for = image["parallel_for"]
        self.state = 0
        self.running = threads == 1
        self._image = image
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        if threads > 1:
            try:
                self._memory = mmap.mmap(-1, _NEXT_AT + _LINE * threads, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except (OSError, ValueError) as error:
                raise NativeMemory(what="the thread pool's state", reason=str(error)) from None
            self.state = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
            self._clear()

    def start(self) -> None:
        """Make sure that the workers run; cheap when they do."""
        if self.running:
            return
        with self._lock:
            if self.running or _exiting:
                return  # too late to start threads: parallel_for completes with the caller alone
            loop = _WORKER_LOOP(self._image["worker_loop"])
            workers = self._workers = []
            try:
                for number in range(1, self.threads):
                    worker = threading.Thread(
                        target=_work, args=(loop, self.state, number), name=f"dlc-{number}", daemon=True
                    )
                    worker.start()
                    workers.append(worker)
            except RuntimeError:
                pass  # the system gives no more threads: chunks of the missing ones are taken by the others
            except BaseException:
                self._end_workers()  # Ctrl-C: two workers of one number would share scratch memory
                raise
            self.running = True

    def stop(self) -> None:
        """End the workers; a later `start` begins anew. No call may be under way, except at exit."""
        if self.state == 0:
            return
        with self._lock:
            if self.running:
                self._end_workers()

    def _end_workers(self) -> None:
        _POOL_STOP(self._image["pool_stop"])(self.state)
        for worker in self._workers:
            worker.join(_JOIN_SECONDS)
        # At exit the state stays as it is: a daemon thread may be inside a call, which it completes alone.
        if not _exiting and not any(worker.is_alive() for worker in self._workers):
            self._clear()
            self._workers = []
            self.running = False

    def after_fork(self) -> None:
        """In the child: no worker exists, and whatever job was under way belongs to the parent."""
        self._lock = threading.Lock()
        if self.state:
            self._workers = []
            self.running = False
            self._clear()

    def _clear(self) -> None:
        polls = _SPIN_POLLS if self.threads <= available_cpus() else _SPIN_POLLS_CROWDED
        ctypes.memset(self.state, 0, len(self._memory))
        for at, value in ((_THREADS_AT, self.threads), (_SPIN_AT, polls)):
            ctypes.c_int64.from_address(self.state + at).value = value


def _work(loop: Callable[[int, int], None], state: int, number: int) -> None:
    """A worker's life. Signals are left to the threads of the user, whom they are meant to interrupt."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _DEFERRABLE)
    loop(state, number)


_pools: dict[tuple[bytes, int], Pool] = {}
_images: dict[bytes, Image] = {}
_registry_lock = threading.Lock()
_exiting = False


def get_pool(code: bytes, threads: int) -> Pool:
    """The process's pool of `threads` threads that runs `code` (the bytes of a pool object)."""
    threads = check_threads(threads)
    digest = hashlib.sha256(code).digest()
    with _registry_lock:
        pool = _pools.get((digest, threads))
        if pool is None:
            image = _images.get(digest)
            if image is None:
                image = load_objects({"pool": code})
                for name in _FUNCTIONS:
                    if name not in image:
                        raise BadObject(name="pool", reason=f"it lacks the function '{name}'")
                _images[digest] = image
            pool = _pools[digest, threads] = Pool(image, threads)
        return pool


def _stop_all() -> None:
    global _exiting
    _exiting = True
    for pool in list(_pools.values()):
        pool.stop()


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for pool in _pools.values():
        pool.after_fork()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Pool", "default_threads", "get_pool"]
