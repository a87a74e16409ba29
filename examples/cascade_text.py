"""A softmax attention written as a cascade of Einsums: interpreted, compiled, compared."""

import tempfile
from pathlib import Path

import numpy as np

import dlc
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program

TEXT = """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> (O) {
  QK[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e]   where m <= p
  GM[h, p]    = max(m) QK[h, p, m]
  SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
  SD[h, p]    = sum(m) SN[h, p, m]
  AV[h, p, f] = sum(m) SN[h, p, m] * V[h, m, f]
  O[h, p, f]  = AV[h, p, f] / SD[h, p]
}
"""

program = parse_program(TEXT)
generator = np.random.default_rng(0)
q, k, v = (generator.standard_normal((2, 7, d), dtype=np.float32) for d in (8, 8, 5))
(expected,) = run_program(program, [q, k, v])  # the interpreter says what the text means

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "attention.ein"
    path.write_text(TEXT)
    exe = dlc.compile(path)
    got = exe(q, k, v)
print(f"{got.shape}, largest difference {np.abs(got - expected).max():.1e}")
assert np.abs(got - expected).max() < 1e-5
