"""Small tasks, real ones where there are, and a cache of data sets that goes afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.verify.small_tasks import write_small_tasks

# Real MTEB data, where it lies beside the checkout; none of it is a part of it.
REAL = Path(__file__).parents[2].parent / "shared" / "mteb"


@pytest.fixture(scope="session", autouse=True)
def _own_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven tasks, one of every category, of 60 units each."""
    return write_small_tasks(tmp_path_factory.mktemp("small") / "tasks")


@pytest.fixture(scope="session")
def real() -> Path:
    """A folder of real MTEB test data."""
    if not (REAL / "manifest.json").is_file():
        pytest.skip("no real MTEB data beside the checkout")
    return REAL
