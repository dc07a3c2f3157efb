"""Which baseline a name stands for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from anna_export.bench.opening import OpenArtifact, Opened, OpenSentenceTransformer, OpenUrl
from anna_export.bench.openvino_baseline import OpenOpenVino
from anna_export.errors import InputError
from anna_export.text.prompts import Prompt

KINDS: Final = ("pytorch", "sentence-transformers", "openvino")


def find_baseline(
    against: str,
    ours: OpenArtifact,
    prompt: Prompt,
    max_tokens: int,
    model: Path | None,
) -> Callable[[], Opened]:
    """Return what opens a baseline.

    Args:
        against: One of KINDS, a URL, or another artifact's folder.
        ours: The artifact that is compared with it.
        prompt: Of every text.
        max_tokens: The longest sequence.
        model: A model folder, for sentence-transformers.

    Raises:
        InputError: If there is no such baseline, or it needs a model folder.
    """
    if against.startswith(("http://", "https://")):
        return OpenUrl(against.rstrip("/"), prompt, os.environ.get("ANNA_BENCH_API_KEY"))
    if against == "pytorch":
        return OpenArtifact(ours.folder, ours.prompt, "pytorch", ours.device, None)
    if against == "openvino":
        return OpenOpenVino(ours.folder, ours.prompt, ours.threads)
    if against == "sentence-transformers":
        if model is None:
            raise InputError(
                "expected `model` with the folder that sentence-transformers is to load, found "
                "none; give the merged model (anna-export merge)"
            )
        return OpenSentenceTransformer(model, prompt, max_tokens, ours.device)
    folder = Path(against)
    if not folder.is_dir():
        raise InputError(
            f"expected `against` {', '.join(KINDS)}, an artifact's folder or a URL, found "
            f"{against!r}"
        )
    return OpenArtifact(folder, ours.prompt, ours.backend, ours.device, ours.threads)
