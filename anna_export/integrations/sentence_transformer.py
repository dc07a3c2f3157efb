"""An artifact as a sentence-transformers model."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import transformers

from anna_export.artifact.manifest import read_manifest
from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.errors import ExtraError, InputError, MissingError
from anna_export.integrations.contract_tokenizer import contract_tokenizer
from anna_export.text.batch import TokenBatch
from anna_export.text.framing import TokenFraming
from anna_export.text.limit import MIN_TOKENS
from anna_export.text.st_files import st_prompts
from anna_export.text.tokeniser import Tokeniser

try:
    import sentence_transformers
    from sentence_transformers.util import load_dir_path
except ImportError:
    raise ExtraError(
        "expected sentence-transformers, found none; install anna-export[train]"
    ) from None


class AnnaEncoder(torch.nn.Module):
    """The whole artifact as one module: it tokenises and returns finished sentence embeddings.

    Args:
        encoder: The artifact's.
        folder: Where the artifact is.
    """

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.folder = folder.absolute()
        self._cut = _Cut(self.folder, encoder.tokeniser.framing)
        assert isinstance(encoder.tokeniser, Tokeniser)
        self._cut.tokeniser = encoder.tokeniser  # it need not be read twice

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> Self:
        """Open the artifact; called by sentence-transformers, as its own modules are.

        Args:
            model_name_or_path: Its folder, or its repository on the hub.
            subfolder: Where in it.
            token: For a repository that is not public.
            cache_folder: The hub's cache; None for the usual one.
            revision: Of the repository; None for its main branch.
            local_files_only: Whether to look in the cache alone.

        Raises:
            AnnaError: If there is none, or it is damaged.
        """
        folder = load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if folder is None:
            raise MissingError(
                f"expected an artifact at {model_name_or_path}, found no such folder, and no such "
                "repository in the hub's cache; name the folder, or download it"
            )
        return cls(open_encoder(folder), Path(folder))

    @property
    def max_seq_length(self) -> int:
        """Longest sequence in tokens, prompt and end token included; None sets the artifact's."""
        return self._cut.framing.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, tokens: int | None) -> None:
        framing = self.encoder.tokeniser.framing
        tokens = framing.max_tokens if tokens is None else tokens
        if not MIN_TOKENS <= tokens <= framing.max_tokens:
            raise InputError(
                f"expected max_seq_length in {MIN_TOKENS}..{framing.max_tokens}, found {tokens}"
            )
        self._cut = _Cut(self.folder, replace(framing, max_tokens=tokens))

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
        """The artifact's tokenizer, as code around sentence-transformers asks for it."""
        return self._cut.tokenizer

    @tokenizer.setter
    def tokenizer(self, other: Any) -> None:
        raise InputError(
            f"expected the tokenizer of {self.folder}, found another set ({type(other).__name__}); "
            "export the model with it"
        )

    def preprocess(
        self, inputs: list[Any], prompt: str | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        """Turn texts into padded token ids, the prompt, given by its front, around each."""
        if not all(isinstance(text, str) for text in inputs):
            raise InputError("expected texts as str, found something else in a batch")
        tokeniser = self._cut.tokeniser
        of_front = self.encoder.prompts.for_front(prompt or "")
        ids = tokeniser.ids(inputs, of_front)
        batch = TokenBatch.of_rows(ids, tokeniser.framing.pad_id)
        features = {
            "input_ids": torch.from_numpy(batch.ids),
            "attention_mask": torch.from_numpy(batch.mask),
        }
        if self.encoder.backend.spec.head.leaves_out_prompt:
            features["prompt_length"] = torch.tensor(tokeniser.prompt_tokens(of_front))
        return features

    def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """Add sentence_embedding, (B, D) float32, finished."""
        ids, mask = (features[key].cpu().numpy() for key in ("input_ids", "attention_mask"))
        batch = TokenBatch.from_mask(ids, mask)
        rows = [row[:end].tolist() for row, end in zip(batch.ids, batch.lengths, strict=True)]
        vectors = torch.from_numpy(
            self.encoder.encode_ids(rows, int(features.get("prompt_length", 0)))
        )
        return _Features(features, sentence_embedding=vectors)

    def get_embedding_dimension(self) -> int:
        """D, the length of a vector."""
        return self.encoder.dim

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Refuse: an artifact is copied as a folder, not saved again in parts."""
        raise InputError(
            f"expected a copy of the folder {self.folder}, found a save to {output_path}"
        )


class _Cut:
    """The artifact's tokenizers, cut at a length; each is read when it is first used.

    It is pickled without them: a copy of a `tokenizers.Tokenizer` forgets that special tokens in a
    text are plain text (findings/tokenizers-copies-split-special-tokens.sh).

    Args:
        folder: The artifact's.
        framing: The artifact's, but for its longest sequence.
    """

    def __init__(self, folder: Path, framing: TokenFraming) -> None:
        self._folder = folder
        self.framing = framing

    def __reduce__(self) -> tuple[type[Self], tuple[Path, TokenFraming]]:
        return type(self), (self._folder, self.framing)

    @cached_property
    def tokeniser(self) -> Tokeniser:
        return Tokeniser.open(self._folder, self.framing)

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
        return contract_tokenizer(self._folder, self.framing)


class _Features(dict[str, torch.Tensor]):
    """What the module gives; anything that only other modules give is refused in words."""

    def __missing__(self, key: str) -> torch.Tensor:
        raise InputError(
            f"expected {' or '.join(self)} to be asked for, found {key}: the artifact's graph "
            "pools by itself; for that take the model it was made from"
        )


def sentence_transformer(artifact: str | Path) -> "sentence_transformers.SentenceTransformer":
    """Open an artifact as a SentenceTransformer; its vectors are those of `open_encoder`.

    Raises:
        AnnaError: If the artifact is missing or damaged.
        ExtraError: If sentence-transformers is not installed.
    """
    module = AnnaEncoder(open_encoder(artifact), Path(artifact))
    prompts = module.encoder.prompts
    return sentence_transformers.SentenceTransformer(
        modules=[module],
        prompts=st_prompts(prompts),
        default_prompt_name=prompts.default,
        similarity_fn_name=read_manifest(module.folder).similarity,
        device="cpu",
    )
