"""Cascades that the tests of the spatial model ask about."""

from __future__ import annotations

from tests.ir import pass_cascades

HEAD = "cascade attention(Q: f32[h, p, e], K: f32[h, m, e], V: f32[h, m, f]) -> {result} {{\n"

THREE_PASS, DEFERRED = (text.replace(" where m <= p", "").lstrip() for text in (pass_cascades.THREE_PASS, pass_cascades.DEFERRED))
"""FuseMax's three-pass cascade, and the same with the division after the sum; without the mask."""

ONE_PASS = pass_cascades.ONE_PASS.replace("max(RM1[h, p], -3.4028234663852886e38)", "RM1[h, p]").lstrip()
"""As a running reduction is written."""

CASCADE_5 = (
    ONE_PASS.replace(
        "RD1[h, p] = RD[h, p] * PRM[h, p] + SLD[h, p]",
        "SPD[h, p] = RD[h, p] * PRM[h, p]\n    RD1[h, p] = SPD[h, p] + SLD[h, p]",
    )
    .replace(
        "RNV1[h, p, f] = RNV[h, p, f] * PRM[h, p] + SLNV[h, p, f]",
        "SPNV[h, p, f] = RNV[h, p, f] * PRM[h, p]\n    RNV1[h, p, f] = SPNV[h, p, f] + SLNV[h, p, f]",
    )
    .replace("select(RM1[h, p] > RM[h, p], exp(RM[h, p] - RM1[h, p]), 1.0)", "exp(RM[h, p] - RM1[h, p])")
)
"""FuseMax's Cascade 5, one Einsum per operation."""

DERIVED = (
    HEAD.format(result="AV")
    + """\
  GM_init[h, p]: f32 = -inf
  SD_init[h, p]: f32 = 0.0
  AV_sum_init[h, p, f]: f32 = 0.0
  scan m1: (m + 127)//128 carry (GM_run = GM_init, SD_run = SD_init, AV_sum_run = AV_sum_init) {
    QK_block[h, p, m0: 128] = sum(e) Q[h, p, e] * K[h, m0 + 128*m1, e] where m0 + 128*m1 < m
    GM_block[h, p] = max(m0) QK_block[h, p, m0] where m0 + 128*m1 < m
    GM_next[h, p] = max(GM_run[h, p], GM_block[h, p])
    SN_block[h, p, m0: 128] = exp(QK_block[h, p, m0] - max(GM_next[h, p], -3.4028234663852886e+38)) where m0 + 128*m1 < m
    SD_block[h, p] = sum(m0) SN_block[h, p, m0] where m0 + 128*m1 < m
    GM_fix[h, p] = select(GM_next[h, p] > GM_run[h, p], exp(GM_run[h, p] - GM_next[h, p]), 1.0)
    SD_next[h, p] = SD_run[h, p] * GM_fix[h, p] + SD_block[h, p]
    AV_sum_block[h, p, f] = sum(m0) SN_block[h, p, m0] * V[h, m0 + 128*m1, f] where m0 + 128*m1 < m
    AV_sum_next[h, p, f] = AV_sum_run[h, p, f] * GM_fix[h, p] + AV_sum_block[h, p, f]
    yield (GM_next, SD_next, AV_sum_next)
  } -> (GM, SD, AV_sum)
  AV[h, p, f] = select(idx(0) < m, AV_sum[h, p, f] / SD[h, p], 0.0)
}
"""
)
"""As a derivation writes it that also minds empty rows and values beyond the type's range."""

CASCADES = {
    "one-pass": ONE_PASS,
    "derived": DERIVED,
    "cascade-5": CASCADE_5,
    "three-pass": THREE_PASS,
    "deferred": DEFERRED,
    "product": "cascade product(A: f32[p, e], B: f32[e, m]) -> C {\nC[p, m] = sum(e) A[p, e] * B[e, m]\n}\n",
    "shared": """\
cascade shared(X: f32[p, m], B: f32[m]) -> S {
  T[m] = B[m] + 1.0
  W[p, m] = X[p, m] + B[m]
  S[p] = sum(m) W[p, m] * T[m]
}
""",
    "row-sum": "cascade rows(X: f32[p, m]) -> S {\nS[p] = sum(m) X[p, m]\n}\n",
    "mlp": """\
cascade mlp(X: f32[p, e], U: f32[e, m], D: f32[m, f]) -> Y {
  H[p, m] = sum(e) X[p, e] * U[e, m]
  R[p, m] = max(H[p, m], 0.0)
  Y[p, f] = sum(m) R[p, m] * D[m, f]
}
""",
    "layernorm": """\
cascade layernorm(X: f32[h, p, m], G: f32[m]) -> Y {
  S[h, p] = sum(m) X[h, p, m]
  D[h, p, m] = X[h, p, m] - S[h, p] * 0.125
  Q[h, p] = sum(m) D[h, p, m] * D[h, p, m]
  R[h, p] = rsqrt(Q[h, p])
  Y[h, p, m] = D[h, p, m] * R[h, p] * G[m]
}
""",
    "softmax": """\
cascade softmax(X: f32[h, p, m]) -> Y {
  M[h, p] = max(m) X[h, p, m]
  N[h, p, m] = exp(X[h, p, m] - M[h, p])
  D[h, p] = sum(m) N[h, p, m]
  Y[h, p, m] = N[h, p, m] / D[h, p]
}
""",
}
