"""The pipeline that `dlc.compile` runs unless it is given another one."""

from __future__ import annotations

from dlc.costmodel.tiles import stream_block
from dlc.costmodel.words import WordCosts
from dlc.passes.reduce_passes import ReducePasses

# explicit-domains comes first: no other pass looks at what a tensor's readers inherit.
# fold-constants comes before inline-pointwise, which would spread an Einsum of constants over its readers; what inlining
# makes visible (an index of an index, a twin) is simplified after it.
# coded-products comes before decode-codes, which makes numbers of codes that no kernel takes as they are.
# decode-codes comes before all that computes with constants, or looks for bytes.
# integer-products comes before fold-constants, which dequantises weights for good, and before a quantisation moves into
# the dequantisation that reads it.
# host-assignments comes after fold-constants and hoist-common, which leave copies and equal arms; sink after
# hoist-invariants, for what an arm in a loop alone needs is better computed once before the loop. All four come before
# inline-pointwise, which would spread a cheap producer over both arms.
# winograd reads the convolution with its padding in the access, and its products are contractions to be prepared.
# inline-pointwise runs again after prepare-contractions: the copies that it makes read through what precedes them.
# reduce-passes and stream-kernels come before prepare-contractions, which would pack what they stream.
# split-reductions comes when nothing else asks what a step reduces over.
# share-literals comes last: every other pass, and the choice of kernels, sees the numbers.
_PIPELINE = (
    "explicit-domains,simplify-indices,coded-products{tiles},decode-codes,integer-products,fold-constants,algebra,common-einsums,"
    "dead-code,hoist-common,host-assignments,hoist-invariants,sink,"
    "inline-pointwise,simplify-indices,algebra,fold-constants,common-einsums,"
    "carried-layouts,{winograd}reduce-passes{block},stream-kernels,prepare-contractions{options},inline-pointwise,simplify-indices,split-reductions,fuse,"
    "share-literals"
)


def default_pipeline(
    lanes: int = 16, registers: int = 32, accuracy: str = "default", costs: WordCosts = WordCosts()  # noqa: B008 (a frozen value)
) -> str:
    """The pipeline's text for a target with `lanes` f32 per vector register and that many registers.

    Args:
        costs: of multiplying numbers of few bits.
        accuracy: `strict` keeps to rewrites whose error is bounded by that of the sums as the model has them.
    """
    given = [] if (lanes, registers) == (16, 32) else [f"lanes={lanes}", f"registers={registers}"]
    given += ["bf16_words=false"] if accuracy == "strict" else []
    options = f"{{{' '.join(given)}}}" if given else ""
    sizes = [] if (lanes, registers) == (16, 32) else [f"lanes={lanes}", f"registers={registers}"]
    sizes += [] if costs == WordCosts() else [f"dot={costs.dot}", f"bits={costs.bits}"]
    tiles = f"{{{' '.join(sizes)}}}" if sizes else ""
    winograd = "" if accuracy == "strict" else "winograd," if lanes == 16 else f"winograd{{lanes={lanes}}},"
    size = stream_block(lanes, registers)
    block = "" if size == ReducePasses.block else f"{{block={size}}}"
    return _PIPELINE.format(tiles=tiles, options=options, winograd=winograd, block=block)


DEFAULT_PIPELINE = default_pipeline()
