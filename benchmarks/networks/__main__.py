"""Write the graphs of all networks: `python -m benchmarks.networks`, into `benchmarks/networks/graphs/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.networks import attention, convolutional, searched
from dlc.passes.cosma.graph import Graph

CLASSIC: tuple[Callable[[], Graph], ...] = (
    convolutional.resnet50,
    convolutional.densenet121,
    convolutional.fc_densenet103,
    convolutional.resnext50,
    convolutional.resnext50_split,
    convolutional.r2plus1d18,
    convolutional.s3d,
    convolutional.fcn_resnet50,
    convolutional.lraspp_mobilenet_v3,
    convolutional.deeplabv3_resnet50,
    attention.vit_b16,
    attention.transformer,
)
SEARCHED: tuple[Callable[[], Graph], ...] = (
    searched.nasnet_a,
    searched.amoebanet_d,
    searched.pnasnet5,
    searched.darts,
)
FOLDER = Path(__file__).parent / "graphs"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for make in CLASSIC + SEARCHED:
        graph = make()
        (FOLDER / f"{graph.name}.json").write_text(graph.to_json())


if __name__ == "__main__":
    main()
