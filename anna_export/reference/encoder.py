"""The reference as an encoder: its libraries' token ids, and their vectors of token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anna_export.encoder import Encoder
from anna_export.reference.library import Library
from anna_export.spec import EmbeddingSpec
from anna_export.text.batch import TokenBatch
from anna_export.text.framing import TokenFraming
from anna_export.text.prompts import NO_PROMPT, Prompt

# Texts that are tokenised at once: what they are padded to is thrown away.
_AT_ONCE = 64


class LibraryTokeniser:
    """Token ids as sentence-transformers hands them to the model.

    Args:
        library: The reference.
        framing: The artifact's; of it, only its longest sequence counts here.
    """

    def __init__(self, library: Library, framing: TokenFraming) -> None:
        self.framing = framing
        self._transformer = library.transformer
        self._transformer.max_seq_length = framing.max_tokens
        tokenizer = self._transformer.tokenizer
        if tokenizer.pad_token is None:  # padding is thrown away, but a batch has some
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(framing.pad_id)
        self._special = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]

    def ids(self, texts: Sequence[str], prompt: Prompt = NO_PROMPT) -> list[list[int]]:
        """Return each text's token ids behind a prompt, as the library frames and truncates them.

        Special tokens written in a text are plain text, as in an artifact, by the tokenizer's own
        `split_special_tokens`; behind a prompt that has some itself, they are tokens here.
        """
        plain = not self._has_special(prompt.front + prompt.back)
        rows: list[list[int]] = [[] for _ in texts]
        for split in (False, True):
            members = [
                index
                for index, text in enumerate(texts)
                if (plain and self._has_special(text)) is split
            ]
            for start in range(0, len(members), _AT_ONCE):
                part = members[start : start + _AT_ONCE]
                bodies = [texts[index] + prompt.back for index in part]
                for index, ids in zip(part, self._preprocess(bodies, prompt, split), strict=True):
                    rows[index] = ids
        return rows

    @property
    def truncation_side(self) -> str:
        """Which end of prompt and text the tokenizer cuts: "right" or "left"."""
        return str(self._transformer.tokenizer.truncation_side)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the library counts as a prompt's, where it leaves them out."""
        if not prompt.front:
            return 0
        return int(self._transformer.preprocess(["a"], prompt=prompt.front)["prompt_length"])

    def id_to_token(self, token: int) -> str:
        """Return how a token is written in the vocabulary."""
        return str(self._transformer.tokenizer.convert_ids_to_tokens(token))

    def comparable(self, text: str, prompt: Prompt) -> bool:
        """Say whether the library can be asked for what an artifact promises for a text.

        It has no words that stay behind a text which is truncated, and takes special tokens of a
        text for tokens behind a prompt that has some.
        """
        if self._has_special(text) and self._has_special(prompt.front + prompt.back):
            return False
        return not prompt.back or len(self.ids([text], prompt)[0]) < self.framing.max_tokens

    def _preprocess(self, texts: list[str], prompt: Prompt, split: bool) -> list[list[int]]:
        tokenizer = self._transformer.tokenizer
        before = tokenizer.split_special_tokens
        tokenizer.split_special_tokens = split or before
        try:
            batch = self._transformer.preprocess(texts, prompt=prompt.front or None)
        finally:
            tokenizer.split_special_tokens = before
        pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        return [row[real].tolist() for row, real in pairs]

    def _has_special(self, text: str) -> bool:
        return any(token in text for token in self._special)


class LibraryBackend:
    """sentence-transformers' own forward pass over its modules.

    Args:
        library: The reference.
        spec: Its numbers, by our reading.
        compute_label: What it computes in, and from what.
        device: Where its weights are.
    """

    name = "pytorch"

    def __init__(
        self,
        library: Library,
        spec: EmbeddingSpec,
        compute_label: str,
        device: str = "cpu",
    ) -> None:
        self.library = library
        self.spec = spec
        self.compute_label = compute_label
        self._device = device

    @property
    def model(self) -> Any:
        """Transformers' model, which gives the hidden states."""
        return self.library.transformer.model

    def run(self, batch: TokenBatch) -> np.ndarray:
        """Return (B, D) float32 rows, as the last module gives them; a prefix is computed again."""
        batch = batch.joined()
        counts = batch.prompt_tokens
        vectors = np.empty((len(batch.ids), self.library.dim), dtype=np.float32)
        # the library takes one prompt a batch
        for count in [0] if counts is None else np.unique(counts):
            members = slice(None) if counts is None else np.flatnonzero(counts == count)
            features = {
                "input_ids": torch.from_numpy(batch.ids[members]).to(self._device),
                "attention_mask": torch.from_numpy(batch.mask[members]).to(self._device),
                "prompt_length": int(count),
            }
            with torch.inference_mode():
                pooled = self.library.model(features)["sentence_embedding"]
            vectors[members] = pooled.float().cpu().numpy()
        return vectors


class ReferenceEncoder(Encoder):
    """The reference: what its libraries make of texts, and what they say of themselves."""

    backend: LibraryBackend
    tokeniser: LibraryTokeniser
