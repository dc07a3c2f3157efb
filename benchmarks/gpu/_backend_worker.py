"""One process of backends.py: times an artifact's backend, tokens in and vectors out.

    python -m benchmarks.gpu._backend_worker ARTIFACT BACKEND SHAPES

SHAPES is a JSON list of [batch, tokens]; the answer is printed as JSON.
"""

import json
import statistics
import sys
import time

import numpy as np

from anna_export.backends import open_encoder
from anna_export.text.batch import TokenBatch

REPEATS = 7


def main() -> None:
    """Time each shape and print the answer."""
    artifact, backend, shapes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    encoder = open_encoder(artifact, backend=backend, device="cuda")
    random = np.random.default_rng(0)
    rows = []
    for batch, tokens in shapes:
        ids = random.integers(3, encoder.backend.spec.vocab_size, (batch, tokens)).tolist()
        padded = TokenBatch.of_rows(ids, encoder.tokeniser.framing.pad_id)
        seconds = []
        for _ in range(REPEATS + 2):
            started = time.perf_counter()
            vectors = encoder.backend.run(padded)
            seconds.append(time.perf_counter() - started)
        assert np.isfinite(vectors).all(), (batch, tokens)
        median = statistics.median(seconds[2:])
        rows.append(
            {
                "batch": batch,
                "tokens": tokens,
                "ms": median * 1e3,
                "spread_ms": [min(seconds[2:]) * 1e3, max(seconds[2:]) * 1e3],
                "tokens_per_second": batch * tokens / median,
            }
        )
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
