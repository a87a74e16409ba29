"""Load a .dlc file, run it once, and print the seconds since a given moment: `first_result.py MODEL INPUTS BEGAN`.

Nothing but NumPy and dlc's runtime can be imported here, so this is what a deployed process pays, its start included.
"""

from __future__ import annotations

import sys
import time

FORBIDDEN = ("torch", "onnx", "onnxruntime", "mlir", "lark", "ml_dtypes", "transformers")


def main(model: str, inputs: str, began: str) -> None:
    sys.modules.update(dict.fromkeys(FORBIDDEN))  # type: ignore[arg-type]  # None makes an import fail
    import numpy as np

    from dlc.runtime.executable import load

    executable = load(model)
    with np.load(inputs) as arrays:
        given = [arrays[name] for name in arrays.files if name.startswith("0.")]
    executable(*given)
    print(time.time() - float(began))


if __name__ == "__main__":
    main(*sys.argv[1:4])
