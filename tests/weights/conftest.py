"""A base model of few tokens, which all tests of weights share."""

from pathlib import Path

import pytest

from tests.support.types import MakeModel

ROWS = 131


@pytest.fixture(scope="session")
def small(make_model: MakeModel) -> Path:
    return make_model(vocab_size=ROWS)
