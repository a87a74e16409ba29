"""The runtime as part of a process: what it imports, fork, spawn, exit, Ctrl-C, threads that come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dlc.runtime.cpu import available_cpus
from dlc.runtime.executable import Executable


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    Executable.from_parts(*models.bias(), threads=2).save(folder / "bias.dlc")
    Executable.from_parts(*models.spin(), threads=2).save(folder / "spin.dlc")
    return folder


HEAD = """
import os, signal, sys, threading, time
import numpy as np
from dlc.runtime.executable import load
os.chdir(sys.argv[1])
w = np.arange(64, dtype=np.float32) / 8
def check(exe, b=300, s=64):
    # not random: NumPy's generator has a lock, which a fork may copy while it is held
    x = np.arange(b * s, dtype=np.float32).reshape(b, s)
    assert np.array_equal(exe(x), 2 * x + w[:s])
"""


def run(body: str, folder, timeout: float = 60, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + body, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def ok(done) -> str:
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr
    return done.stdout


def test_needs_numpy_and_nothing_else(saved):
    """A symbolic kernel runs from its file where torch, onnx and mlir cannot be imported."""
    body = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "mlir", "llvm", "lark", "ml_dtypes", "onnxruntime", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
exe = load("bias.dlc")
for b, s in ((1, 1), (300, 64), (77, 5), (0, 3)):
    check(exe, b, s)
exe.profile(np.ones((2, 3), np.float32))
own = sorted(name for name in sys.modules if name.split(".")[0] == "dlc")
assert all(name in ("dlc", "dlc.errors") or name.startswith("dlc.runtime") for name in own), own
outside = {"numpy", "dlc", "sitecustomize", "__main__"} | set(sys.stdlib_module_names)
foreign = {n.split(".")[0] for n in sys.modules} - outside
print(sorted(n for n in foreign if not n.startswith(("_", "cython")) and "editable" not in n and "distutils" not in n))
"""
    assert ok(run(body, saved)).strip() == "[]"


def test_starts_fast(saved):
    body = """
begin = time.perf_counter()
check(load("bias.dlc"))
print(time.perf_counter() - begin)
"""
    assert float(ok(run(body, saved))) < 0.5


def test_exits_cleanly_with_workers_asleep_and_awake(saved):
    ok(run("exe = load('bias.dlc', threads=4); check(exe); time.sleep(0.05)", saved))
    ok(run("exe = load('bias.dlc', threads=4); check(exe)", saved))
    ok(run("import dlc.runtime.pool; exe = load('bias.dlc', threads=3)", saved))  # never called


def test_exits_while_daemon_threads_are_inside_kernels(saved):
    body = """
exe = load("spin.dlc", threads=2)
def forever():
    while True:
        exe(1)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    begin = time.monotonic()
    done = run(body, saved, timeout=40)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 20


def test_a_call_at_exit_still_works(saved):
    ok(run("import atexit; exe = load('bias.dlc', threads=3); atexit.register(check, exe); check(exe)", saved))
    ok(run("import atexit; atexit.register(lambda: check(exe)); exe = load('bias.dlc', threads=3)", saved))


def test_fork(saved):
    body = """
exe, three = load("bias.dlc", threads=2), load("bias.dlc", threads=3)
check(exe); check(three)
for generation in range(3):
    pid = os.fork()
    if pid == 0:
        check(exe); check(three)
        assert sum(t.name.startswith("dlc-") for t in threading.enumerate()) == 3
        inner = os.fork()
        if inner == 0:
            check(exe); check(three)
            os._exit(0)
        assert os.waitpid(inner, 0)[1] == 0
        check(exe)
        os._exit(0)
    check(exe)
    assert os.waitpid(pid, 0)[1] == 0
check(three)
"""
    ok(run(body, saved))


def test_fork_while_other_threads_call(saved):
    body = """
exe = load("bias.dlc", threads=2)
stop = False
def busy():
    while not stop:
        check(exe)
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads: t.start()
for _ in range(15):
    pid = os.fork()
    if pid == 0:
        check(exe); check(exe)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop = True
for t in threads: t.join()
check(exe)
"""
    ok(run(body, saved))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(saved, tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(
        HEAD
        + f"""
import multiprocessing
def child(exe, path):
    check(exe)
    check(load(path, threads=2))
if __name__ == "__main__":
    exe = load("bias.dlc", threads=2)
    check(exe)
    context = multiprocessing.get_context("{method}")
    workers = [context.Process(target=child, args=(exe, os.path.abspath("bias.dlc"))) for _ in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(); assert worker.exitcode == 0
    check(exe)
"""
    )
    command = [sys.executable, str(script), str(saved)]
    ok(subprocess.run(command, capture_output=True, text=True, timeout=60))


def test_ctrl_c_interrupts_between_calls_and_leaves_a_working_executable(saved):
    body = """
exe = load("spin.dlc", threads=2)
bias = load("bias.dlc", threads=2)
exe(1)
print("ready", flush=True)
try:
    while True:
        exe(1)
except KeyboardInterrupt:
    pass
assert exe(1) == 1
check(bias)
print("fine")
"""
    command = [sys.executable, "-c", HEAD + body, str(saved)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "fine\n", "")


def test_ctrl_c_ends_a_program_that_does_not_catch_it(saved):
    body = "exe = load('spin.dlc', threads=2); print('ready', flush=True)\nwhile True: exe(1)\n"
    command = [sys.executable, "-c", HEAD + body, str(saved)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_pools_are_shared_between_executables(models):
    before = [Executable.from_parts(*models.bias(), threads=3) for _ in range(3)]
    assert len({id(exe._pool) for exe in before}) == 1
    assert Executable.from_parts(*models.bias(), threads=2)._pool is not before[0]._pool


def test_a_pool_stops_and_starts_again(models):
    exe = Executable.from_parts(*models.bias(), threads=4)
    x = np.ones((400, 64), np.float32)
    want = exe(x)
    pool = exe._pool
    assert pool is not None
    workers = list(pool._workers)
    assert len(workers) == 3
    for _ in range(5):
        pool.stop()
        assert not any(worker.is_alive() for worker in workers)
        np.testing.assert_array_equal(exe(x), want)
        workers = list(pool._workers)


def test_workers_sleep_when_idle(models):
    exe = Executable.from_parts(*models.bias(), threads=4)
    exe(np.ones((400, 64), np.float32))
    time.sleep(0.05)
    begin = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - begin < 0.1


def test_threads_follow_affinity(saved):
    body = """
one = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {one})
os.environ.pop("OMP_NUM_THREADS", None); os.environ.pop("DLC_NUM_THREADS", None)
exe = load("bias.dlc")
print(exe.threads)
check(load("bias.dlc", threads=4))  # more threads than CPUs
"""
    assert ok(run(body, saved)).strip() == "1"
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


def _interruptible() -> None:
    """A background job of a shell starts with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
