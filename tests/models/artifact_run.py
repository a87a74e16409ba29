"""Run a saved artifact on inputs from a file, in a process where torch, onnx and MLIR cannot be imported.

    python artifact_run.py model.dlc inputs.npz outputs.npz

`inputs.npz` holds arrays `case.position`; each case is one call. The seconds from the process's start to its first result are
stored as `first_result_s`.
"""

from __future__ import annotations

import sys
import time

_STARTED = time.time()
FORBIDDEN = ("torch", "onnx", "onnxruntime", "mlir", "lark", "ml_dtypes", "transformers")


class _Refuse:
    """An import hook that makes every forbidden package missing."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{name} is forbidden in this process")


def main(artifact: str, inputs: str, outputs: str) -> None:
    sys.meta_path.insert(0, _Refuse())  # type: ignore[arg-type]
    import numpy as np

    from dlc.runtime.executable import load

    executable = load(artifact, threads=2)
    arrays = dict(np.load(inputs))
    cases: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, array in arrays.items():
        case, position = key.split(".")
        cases.setdefault(case, []).append((int(position), array))
    results: dict[str, np.ndarray] = {}
    first = 0.0
    for case, given in cases.items():
        made = executable(*(a for _, a in sorted(given, key=lambda g: g[0])))
        first = first or time.time() - _STARTED
        for n, array in enumerate(made if isinstance(made, (tuple, list)) else (made,)):
            results[f"{case}.{n}"] = np.asarray(array)
    assert not any(m.split(".")[0] in FORBIDDEN for m in sys.modules), "a forbidden module was imported"
    np.savez(outputs, first_result_s=np.float64(first), **results)


if __name__ == "__main__":
    main(*sys.argv[1:4])
