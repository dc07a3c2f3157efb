"""The reference in memory and layer by layer: the same libraries, the same vectors."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from anna_export.reference.library import Library, open_library, open_library_shell
from anna_export.reference.load import open_reference, open_streamed_reference
from anna_export.verify.texts import ODD_TEXTS, ordinary_texts
from anna_export.weights.checkpoint import Checkpoint

OpenIt = Callable[[Path, Sequence[Path]], Library]
TEXTS = [*ODD_TEXTS, *ordinary_texts(4)]


def test_a_streamed_reference_gives_the_librarys_vectors_dense_modules_too(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    modules = [Transformer(str(base)), Pooling(40, "mean"), Dense(40, 24), Normalize()]
    folder = tmp_path / "st"
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    library = SentenceTransformer(str(folder), device="cpu")
    library.load_adapter(str(adapter))
    in_memory = open_reference(folder, adapter)
    framing = in_memory.tokeniser.framing
    streamed = open_streamed_reference(Checkpoint.open(folder, adapter), framing)
    # a text's special tokens are plain text here, and tokens for encode
    texts = [text for text in TEXTS if "<s>" not in text and "</s>" not in text]
    expected = library.encode(texts)
    for reference in (in_memory, streamed):
        np.testing.assert_allclose(reference.encode(texts), expected, rtol=0, atol=1e-6)


def test_a_streamed_references_library_reads_no_weight_of_the_decoder(
    base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"no safetensors file")
    open_library_shell(folder, [])


@pytest.mark.parametrize("open_it", [open_library, open_library_shell])
def test_no_keys_and_values_are_held_for_a_next_token(base: Path, open_it: OpenIt) -> None:
    assert open_it(base, []).transformer.model.config.use_cache is False
