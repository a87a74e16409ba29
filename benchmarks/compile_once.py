"""Compile one model of the suite in this process and print how long it took, as JSON.

    DLC_CACHE_DIR=folder python -m benchmarks.compile_once NAME [--save FILE]

The first call with an empty cache folder is a cold compilation; the second finds the program there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.sources import source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    executable = source(options.name).compile()
    result = executable.compile_report.to_json()
    if options.save:
        began = time.perf_counter()
        executable.save(options.save)
        result["save_s"] = time.perf_counter() - began
        result["artifact_bytes"] = options.save.stat().st_size
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
