"""One process of prefix.py: opens an artifact and measures what it is asked.

    python -m benchmarks.holds._prefix_worker open|peak|times ASK

ASK is a JSON file; the answer is printed as JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from anna_export import open_encoder
from anna_export.encoder import Encoder
from anna_export.text.prompts import NO_PROMPT, Prompt
from benchmarks.baselines.job import peak_bytes
from benchmarks.decided.prefix_forms import Form, bare, draw_feeds, run_form

THREADS: Final = 2
MIN_SECONDS: Final = 0.2
LONG_SECONDS: Final = 4.0  # once is enough


def main() -> None:
    """Measure and print the answer."""
    kind, path = sys.argv[1:]
    ask = json.loads(Path(path).read_text())
    started = time.perf_counter()
    encoder = open_encoder(ask["artifact"], threads=THREADS)
    if kind == "open":
        answer: Any = {"seconds": time.perf_counter() - started}
    elif kind == "peak":
        encoder.encode(ask["texts"], ask["prompt"])
        encoder.encode(ask["texts"], ask["prompt"])
        answer = {"peak_bytes": peak_bytes()}
    else:
        answer = _times(encoder, ask)
    json.dump(answer, sys.stdout)


def _times(encoder: Encoder, ask: dict[str, Any]) -> dict[str, float]:
    """Time each case, all in turn: a batch of texts without, behind or with a whole prompt."""
    uncached = Encoder(encoder.backend, encoder.tokeniser, encoder.prompts)
    generator = np.random.default_rng(0)
    seconds_by_case: dict[str, float] = {}
    for case in ask["cases"]:
        prompt = encoder.prompts.find(case["prompt"])
        texts = _texts(generator, encoder, case)
        if case["way"] == "bare":
            seconds_by_case[case["name"]] = _bare_seconds(encoder, case)
            continue
        used = uncached if case["way"] == "whole" else encoder
        rows = [[*_front(encoder, prompt), *text] for text in texts]
        seconds_by_case[case["name"]] = _seconds(partial(used.encode_ids, rows))
    return seconds_by_case


def _front(encoder: Encoder, prompt: Prompt) -> list[int]:
    """Return a prompt's ids; without a prompt, none: rows of equal text are compared."""
    if prompt == NO_PROMPT or encoder.prefixes is None:
        return []
    return encoder.prefixes.ids[prompt]


def _texts(generator: np.random.Generator, encoder: Encoder, case: dict[str, Any]) -> Any:
    shape = (case["batch"], case["text"])
    return generator.integers(3, encoder.backend.spec.vocab_size, shape).tolist()


def _bare_seconds(encoder: Encoder, case: dict[str, Any]) -> float:
    """Time the bare products with a prefix, for as many layers as every token attends in."""
    form = Form()
    session, feeds = form.session(bare(form)), draw_feeds(case["batch"], case["text"])
    layers = encoder.backend.spec.layers - 1
    return layers * _seconds(lambda: run_form(session, feeds))


def _seconds(run: Callable[[], object]) -> float:
    seconds: list[float] = []
    while sum(seconds[1:]) < MIN_SECONDS or len(seconds) < 3:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
        if seconds[0] > LONG_SECONDS:
            return seconds[0]
    return statistics.median(seconds[1:])  # the first warms up


if __name__ == "__main__":
    main()
