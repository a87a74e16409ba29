"""Cascades whose pass counts are known, as texts."""

from __future__ import annotations

THREE_PASS = """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> AV {
  QK[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e] where m <= p
  GM[h, p] = max(m) QK[h, p, m]
  SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
  SD[h, p] = sum(m) SN[h, p, m]
  A[h, p, m] = SN[h, p, m] / SD[h, p]
  AV[h, p, f] = sum(m) A[h, p, m] * V[h, m, f]
}
"""

DEFERRED = """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> O {
  QK[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e] where m <= p
  GM[h, p] = max(m) QK[h, p, m]
  SN[h, p, m] = exp(QK[h, p, m] - GM[h, p])
  SD[h, p] = sum(m) SN[h, p, m]
  AV[h, p, f] = sum(m) SN[h, p, m] * V[h, m, f]
  O[h, p, f] = AV[h, p, f] / SD[h, p]
}
"""

TWO_PASS = """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> AV symbols (m in 1..) {
  QK[h, p, m1: (m + 127)//128, m0: 128] = sum(e) Q[h, p, e] * K[h, 128*m1 + m0, e] where 128*m1 + m0 < m
  LM[h, p, m1] = max(m0) QK[h, p, m1, m0]
  SLN[h, p, m1, m0] = exp(QK[h, p, m1, m0] - LM[h, p, m1])
  SLD[h, p, m1] = sum(m0) SLN[h, p, m1, m0]
  GM[h, p] = max(m1) LM[h, p, m1]
  C[h, p, m1] = exp(LM[h, p, m1] - GM[h, p])
  SD[h, p] = sum(m1) C[h, p, m1] * SLD[h, p, m1]
  A[h, p, m1, m0] = C[h, p, m1] * SLN[h, p, m1, m0] / SD[h, p]
  AV[h, p, f] = sum(m1, m0) A[h, p, m1, m0] * V[h, 128*m1 + m0, f]
}
"""

TWO_PASS_SPLIT_INPUTS = """
cascade attention(Q: f32[p, e], K: f32[m1, m0, e], V: f32[m1, m0, f]) -> AV {
  QK[m1, m0, p] = sum(e) Q[p, e] * K[m1, m0, e]
  LM[m1, p] = max(m0) QK[m1, m0, p]
  SLN[m1, m0, p] = exp(QK[m1, m0, p] - LM[m1, p])
  SLD[m1, p] = sum(m0) SLN[m1, m0, p]
  GM[p] = max(m1) LM[m1, p]
  C[m1, p] = exp(LM[m1, p] - GM[p])
  SD[p] = sum(m1) C[m1, p] * SLD[m1, p]
  A[m1, m0, p] = C[m1, p] * SLN[m1, m0, p] / SD[p]
  AV[p, f] = sum(m1, m0) A[m1, m0, p] * V[m1, m0, f]
}
"""

TWO_PASS_FLAT = """
cascade attention(Q: f32[p, e], K: f32[128*n, e], V: f32[128*n, f]) -> AV {
  QK[p, m: 128*n] = sum(e) Q[p, e] * K[m, e]
  LM[p, b: n] = max(i: 128) QK[p, 128*b + i]
  SLN[p, m: 128*n] = exp(QK[p, m] - LM[p, m//128])
  SLD[p, b: n] = sum(i: 128) SLN[p, 128*b + i]
  GM[p] = max(b: n) LM[p, b]
  C[p, b: n] = exp(LM[p, b] - GM[p])
  SD[p] = sum(b: n) C[p, b] * SLD[p, b]
  A[p, m: 128*n] = C[p, m//128] * SLN[p, m] / SD[p]
  AV[p, f] = sum(m: 128*n) A[p, m] * V[m, f]
}
"""

ONE_PASS = """
cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> O {
  RM0[h, p]: f32 = -inf
  RD0[h, p]: f32 = 0.0
  RNV0[h, p, f]: f32 = 0.0
  scan m1: (m + 127)//128 carry (RM = RM0, RD = RD0, RNV = RNV0) {
    BQK[h, p, m0: 128] = sum(e) Q[h, p, e] * K[h, 128*m1 + m0, e] where 128*m1 + m0 < m
    LM[h, p] = max(m0) BQK[h, p, m0]
    RM1[h, p] = max(RM[h, p], LM[h, p])
    SLN[h, p, m0] = exp(BQK[h, p, m0] - max(RM1[h, p], -3.4028234663852886e38))
    SLD[h, p] = sum(m0) SLN[h, p, m0]
    PRM[h, p] = select(RM1[h, p] > RM[h, p], exp(RM[h, p] - RM1[h, p]), 1.0)
    RD1[h, p] = RD[h, p] * PRM[h, p] + SLD[h, p]
    SLNV[h, p, f] = sum(m0) SLN[h, p, m0] * V[h, 128*m1 + m0, f]
    RNV1[h, p, f] = RNV[h, p, f] * PRM[h, p] + SLNV[h, p, f]
    yield (RM1, RD1, RNV1)
  } -> (RMK, RDK, RNVK)
  O[h, p, f] = RNVK[h, p, f] / RDK[h, p]
}
"""

ONE_PASS_SPLIT_INPUTS = """
cascade attention(Q: f32[p, e], K: f32[m1, m0, e], V: f32[m1, m0, f]) -> O {
  RM0[p]: f32 = -inf
  RD0[p]: f32 = 0.0
  RNV0[p, f]: f32 = 0.0
  scan m1 carry (RM = RM0, RD = RD0, RNV = RNV0) {
    BQK[p, m0] = sum(e) Q[p, e] * K[m1, m0, e]
    LM[p] = max(m0) BQK[p, m0]
    RM1[p] = max(RM[p], LM[p])
    SLN[p, m0] = exp(BQK[p, m0] - RM1[p])
    SLD[p] = sum(m0) SLN[p, m0]
    PRM[p] = exp(RM[p] - RM1[p])
    RD1[p] = RD[p] * PRM[p] + SLD[p]
    SLNV[p, f] = sum(m0) SLN[p, m0] * V[m1, m0, f]
    RNV1[p, f] = RNV[p, f] * PRM[p] + SLNV[p, f]
    yield (RM1, RD1, RNV1)
  } -> (RMK, RDK, RNVK)
  O[p, f] = RNVK[p, f] / RDK[p]
}
"""
