"""What `make demo` measures of artifacts: what they find, and how fast they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from demo import retrieve, speed


class Named:
    """An encoder that is known by its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        assert texts and prompt is None
        return np.ones((len(texts), 1), dtype=np.float32)


class Finding:
    """An encoder whose vectors answer each query by its document, if prompts are the right ones."""

    def __init__(self, folder: Path) -> None:
        self.lost = folder.name == "poor"

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        prompts = {"query": "q", "document": "d"}
        assert prompt is not None and {text[0] for text in texts} == {prompts[prompt]}
        vectors = np.eye(len(texts), dtype=np.float32)
        return np.zeros_like(vectors) if self.lost else vectors


def test_retrieval_is_measured_with_prompts_by_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "open_encoder", Finding)
    queries, documents = [f"q{n}" for n in range(13)], [f"d{n}" for n in range(13)]
    scores = retrieve.ndcg_at_10({"a": Path("good"), "b": Path("poor")}, queries, documents)
    assert scores == {"a": 1.0, "b": 0.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Slows down every round in its own way, and notes who was timed."""
    timed: list[str] = []
    slowness: Iterator[float] = iter((1.0, 9.0, 1.0, 5.0, 2.0))
    # by PyTorch, which comes first in a round, and artifacts that are 2 and 4 times as fast
    costs, slowness_of_round = {"pytorch": 8.0, "a": 4.0, "b": 2.0}, 1.0

    def seconds(encoder: Named, texts: list[str]) -> float:
        nonlocal slowness_of_round
        assert len(texts) == 16
        timed.append(encoder.name)
        if encoder.name == "pytorch":
            slowness_of_round = next(slowness)
        # something else disturbed "a" in the last round
        disturbed = 10 if encoder.name == "a" and slowness_of_round == 2.0 else 1
        return costs[encoder.name] * slowness_of_round * disturbed

    monkeypatch.setattr(speed, "write_merged", lambda base, adapter, out: None)
    monkeypatch.setattr(speed, "open_reference", lambda folder: Named("pytorch"))
    monkeypatch.setattr(speed, "open_encoder", lambda folder: Named(folder.name))
    monkeypatch.setattr(speed, "_seconds", seconds)
    return timed


def measured() -> dict[str, dict[str, float]]:
    return speed.measure(Path(), Path(), {"a": Path("a"), "b": Path("b")}, ["text"] * 16)


def test_speed_is_measured_in_turn(clock: list[str]) -> None:
    measured()
    assert clock == ["pytorch", "a", "b"] * speed.ROUNDS


def test_ratios_are_of_one_round_and_rates_of_the_median_one(clock: list[str]) -> None:
    # seconds of "a" are 4, 36, 4, 20 and 80; PyTorch's 8, 72, 8, 40 and 16
    assert measured() == {
        "pytorch": {"texts_per_second": 1.0, "ratio": 1.0},
        "a": {"texts_per_second": 0.8, "ratio": 2.0},
        "b": {"texts_per_second": 4.0, "ratio": 4.0},
    }
