"""One process of serving.py: an artifact's encoder without a server.

    python -m benchmarks.holds._serving_bare ARTIFACT TEXTS.json SECONDS

Embeds the texts again and again, as many at once as a user would hand over, and prints how many a
second.
"""

import itertools
import json
import sys
import time
from pathlib import Path

from anna_export.backends import open_encoder

AT_ONCE = 256


def main() -> None:
    """Measure and print."""
    artifact, texts_file, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    texts = json.loads(texts_file.read_text(encoding="utf-8"))
    encoder = open_encoder(artifact)
    numbers = itertools.count()

    def some() -> list[str]:
        chosen = itertools.islice(numbers, AT_ONCE)
        return [f"{number} {texts[number % len(texts)]}" for number in chosen]

    encoder.encode(some()[:64])
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        done += len(encoder.encode(some()))
    sys.stdout.write(json.dumps(done / (time.perf_counter() - started)))


if __name__ == "__main__":
    main()
