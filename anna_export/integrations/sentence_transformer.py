"""An artifact as a sentence-transformers model."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.errors import ExtraError, InputError
from anna_export.text.batch import TokenBatch
from anna_export.text.limit import MIN_TOKENS
from anna_export.text.tokeniser import Tokeniser

try:
    import sentence_transformers
except ImportError:
    raise ExtraError(
        "expected sentence-transformers, found none; install anna-export[train]"
    ) from None


class AnnaEncoder(torch.nn.Module):
    """The whole artifact as one module: it tokenises and returns finished sentence embeddings."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.folder = folder
        self._longest = encoder.tokeniser.framing.max_tokens

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> Self:
        """Open the artifact; called by sentence-transformers."""
        folder = Path(model_name_or_path) / subfolder
        return cls(open_encoder(folder), folder)

    @property
    def max_seq_length(self) -> int:
        """Longest sequence in tokens, prompt and end token included."""
        return self.encoder.tokeniser.framing.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        framing = self.encoder.tokeniser.framing
        if not MIN_TOKENS <= tokens <= self._longest:
            raise InputError(
                f"expected max_seq_length in {MIN_TOKENS}..{self._longest}, found {tokens}"
            )
        shorter = replace(framing, max_tokens=tokens)
        self.encoder.tokeniser = Tokeniser.open(self.folder, shorter)

    def preprocess(
        self, inputs: list[Any], prompt: str | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        """Turn texts into padded token ids, the prompt, given by its front, around each."""
        if not all(isinstance(text, str) for text in inputs):
            raise InputError("expected texts as str, found something else in a batch")
        tokeniser = self.encoder.tokeniser
        ids = tokeniser.ids(inputs, self.encoder.prompts.for_front(prompt or ""))
        batch = tokeniser.batch(ids)
        return {
            "input_ids": torch.from_numpy(batch.ids),
            "attention_mask": torch.from_numpy(batch.mask),
        }

    def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """Add sentence_embedding, (B, D) float32 of unit length."""
        ids, mask = (features[key].cpu().numpy() for key in ("input_ids", "attention_mask"))
        batch = TokenBatch.from_mask(ids, mask)
        rows = [row[:end].tolist() for row, end in zip(batch.ids, batch.lengths, strict=True)]
        features["sentence_embedding"] = torch.from_numpy(self.encoder.encode_ids(rows))
        return features

    def get_embedding_dimension(self) -> int:
        """D, the length of a vector."""
        return self.encoder.dim

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Refuse: an artifact is copied as a folder, not saved again in parts."""
        raise InputError(
            f"expected a copy of the folder {self.folder}, found a save to {output_path}"
        )


def sentence_transformer(artifact: str | Path) -> "sentence_transformers.SentenceTransformer":
    """Open an artifact as a SentenceTransformer; its vectors are those of `open_encoder`.

    Raises:
        AnnaError: If the artifact is missing or damaged.
        ExtraError: If sentence-transformers is not installed.
    """
    folder = Path(artifact)
    module = AnnaEncoder.load(str(folder))
    prompts = module.encoder.prompts
    return sentence_transformers.SentenceTransformer(
        modules=[module],
        prompts=prompts.fronts(),
        default_prompt_name=prompts.default,
        similarity_fn_name="cosine",
        device="cpu",
    )
