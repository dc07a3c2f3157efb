"""An artifact without this package: onnxruntime and tokenizers alone give its vectors."""

import json

import numpy as np
import onnxruntime
import pytest
import tokenizers
import transformers

from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
from anna_export.graph.names import CANONICAL, CPU
from anna_export.verify.texts import ODD_TEXTS, long_text

NAMES = ("<s>", "</s>", "<unk>")
TEXTS = [text for text in ODD_TEXTS if not any(name in text for name in NAMES)]


def others_vectors(artifact: Artifact, target: str, texts: list[str], side: str) -> np.ndarray:
    """Embed as any other runtime would, by what the folder says."""
    folder = artifact.folder
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad_id = json.loads((folder / "config.json").read_text())["pad_token_id"]
    tokenizer.enable_truncation(config["model_max_length"])
    tokenizer.enable_padding(direction=side, pad_id=pad_id, pad_token=config["pad_token"])
    encodings = tokenizer.encode_batch(texts)
    session = onnxruntime.InferenceSession(
        artifact.graph(target), providers=["CPUExecutionProvider"]
    )
    feeds = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
    }
    (vectors,) = session.run(None, feeds)
    return vectors


@pytest.mark.parametrize("target", [CANONICAL, CPU])
@pytest.mark.parametrize("side", ["right", "left"])
def test_vectors_are_the_encoders_whichever_side_is_padded(
    artifact: Artifact, encoder: Encoder, target: str, side: str
) -> None:
    texts = [*TEXTS, long_text(90)]
    vectors = others_vectors(artifact, target, texts, side)
    # fp32 against fp32: only the order of sums differs
    assert np.abs(vectors - encoder.encode(texts)).max() <= 1e-6


def test_ids_of_tokenizers_alone_are_the_golden_ones(artifact: Artifact) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(artifact.folder / "tokenizer.json"))
    golden = {entry.text: entry.ids for entry in artifact.manifest.golden}
    assert set(golden) > set(TEXTS)
    for text in TEXTS:
        assert tokenizer.encode(text).ids == golden[text], text


def test_config_is_the_decoders_as_exported(artifact: Artifact) -> None:
    config = transformers.AutoConfig.from_pretrained(artifact.folder)
    spec, framing = artifact.manifest.spec, artifact.manifest.framing
    assert config.model_type == "mistral" and config.vocab_size == spec.vocab_size
    assert (config.hidden_size, config.num_hidden_layers) == (spec.dim, spec.layers)
    ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (framing.bos_id, framing.eos_id, framing.pad_id)
    assert "config.json" in artifact.manifest.files
