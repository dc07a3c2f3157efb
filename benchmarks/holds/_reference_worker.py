"""One process of proof_memory.py: embeds a long text by the streamed reference alone.

python -m benchmarks.holds._reference_worker MODEL ADAPTER TOKENS
"""

import sys
from pathlib import Path

from anna_export.reference.load import open_streamed_reference
from anna_export.text.framing import read_framing
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.vectors import longest_texts
from anna_export.weights.checkpoint import Checkpoint


def main() -> None:
    """Embed the longest text of a proof."""
    model, adapter = map(Path, sys.argv[1:3])
    checkpoint = Checkpoint.open(model, adapter)
    framing = read_framing(model, checkpoint.spec, int(sys.argv[3]), adapter=adapter)
    texts = longest_texts(Tokeniser.open(model, framing), checkpoint.spec.sliding_window)
    open_streamed_reference(checkpoint, framing).encode(texts[-1:])


if __name__ == "__main__":
    main()
