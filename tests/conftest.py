"""What all tests share: golden texts, the `slow` marker, and one thread for each library in each worker."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ again; then read the diff")
    parser.addoption("--all", action="store_true", help="run the tests marked slow, too (make test-all)")


def run_everything(config: pytest.Config) -> bool:
    return bool(config.getoption("--all")) or os.environ.get("DLC_TEST_ALL") == "1"


def pytest_configure(config: pytest.Config) -> None:
    # spawned processes and helper modules ask the environment, not pytest
    if run_everything(config):
        os.environ["DLC_TEST_ALL"] = "1"
    else:  # `make test` judges a change by the same examples before and after it; `make test-all` looks for new ones
        settings.register_profile("sampled", derandomize=True)
        settings.load_profile("sampled")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if run_everything(config):
        return
    skip = pytest.mark.skip(reason="slow: run with --all or DLC_TEST_ALL=1")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def everything(request: pytest.FixtureRequest) -> bool:
    """Whether this is `make test-all`; a test that samples in `make test` asks this for its sample size."""
    return run_everything(request.config)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels of the tests go to a folder of this session, unless the caller names one."""
    if "DLC_CACHE_DIR" in os.environ:
        yield
        return
    os.environ["DLC_CACHE_DIR"] = str(tmp_path_factory.getbasetemp().parent / "dlc-cache")
    yield
    del os.environ["DLC_CACHE_DIR"]


@pytest.fixture(autouse=True)
def _few_torch_threads() -> None:
    import sys

    torch = sys.modules.get("torch")  # never import it for a test that does not
    if torch is not None and torch.get_num_threads() > 2:
        torch.set_num_threads(2)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare text with tests/golden/<folder>/<test>[-suffix].txt; `--update-golden` writes it.

    A test calls `golden(text)`, or `golden(text, "after")` to keep several texts apart.
    """
    path: Path = request.node.path
    folder = GOLDEN / path.parent.relative_to(TESTS)
    name = re.sub(r"[^\w.=-]+", "_", request.node.name).strip("_")

    def check(text: str, suffix: str = "") -> None:
        file = folder / (f"{name}-{suffix}.txt" if suffix else f"{name}.txt")
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            return
        if not file.exists():
            pytest.fail(f"no golden text {file.relative_to(TESTS)}; run with --update-golden and read it\n{text}")
        expected = file.read_text()
        if text != expected:
            diff = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), f"golden/{file.name}", "now", lineterm="", n=4
            )
            pytest.fail("\n".join(["text differs from the golden one (--update-golden to accept):", *diff]))

    return check
