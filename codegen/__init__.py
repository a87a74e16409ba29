"""From a fused cascade to a tile program, to MLIR, to LLVM, to object code."""
