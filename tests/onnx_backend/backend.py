"""dlc as a backend of `onnx.backend.test`: compiled to a file, loaded from it, run as native code.

    pytest tests/onnx_backend/official.py        the suite's own runner over this class
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.runner import BackendIsNotSupposedToImplementIt

from dlc.errors import Unsupported


class Prepared(BackendRep):  # type: ignore[misc]
    """A model ready to run. Compilation waits for the inputs: some decide structure (sequences, optionals) or shapes."""

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder

    def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Any, ...]:
        import dlc
        from dlc.frontend.onnx_import import import_for

        names = [i.name for i in self.model.graph.input]
        try:
            imported = import_for(self.model, dict(zip(names, inputs, strict=False)))
            made = dlc.compile(imported)
        except Unsupported as e:
            raise BackendIsNotSupposedToImplementIt(e.message) from e
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "case.dlc"
            made.save(file)
            result = dlc.load(file)(*inputs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


class DlcBackend(Backend):  # type: ignore[misc]
    """What `onnx.backend.test.BackendTest` drives."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **_: Any) -> Prepared:
        del device
        return Prepared(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return bool(device == "CPU")


prepare = DlcBackend.prepare
supports_device = DlcBackend.supports_device
