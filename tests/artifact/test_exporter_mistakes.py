"""Mistakes that other exporters made, each shown not to be made here, through an artifact."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from anna_export.artifact.folder import Artifact
from anna_export.backends import open_encoder
from anna_export.encoder import Encoder
from anna_export.errors import ShapeError
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CANONICAL, CPU
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts
from anna_export.weights.checkpoint import SINGLE_FILE
from tests.support.types import MakeArtifact, MakeBatch, MakeModel, RunGraph

BOS, EOS = 1, 2
LARGEST_FP16 = 65504
TEXTS = (*ODD_TEXTS, *ordinary_texts(4))
# fp32 against fp32: only the order of sums differs
CLOSE = 1e-6


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


def test_padding_on_the_right_changes_nothing_and_on_the_left_is_refused(
    encoder: Encoder, make_batch: MakeBatch
) -> None:
    batch = make_batch(5, 17)
    alone = encoder.backend.run(TokenBatch(batch.ids[:1, :5].copy(), batch.lengths[:1]))
    assert worst(encoder.backend.run(batch)[0], alone[0]) <= CLOSE
    with pytest.raises(ShapeError, match="pad on the right"):
        TokenBatch.from_mask(batch.ids[:, ::-1], batch.mask[:, ::-1])


@pytest.mark.parametrize("text", ["", "a", "ends in </s>", "</s></s>", long_text(9000)])
def test_eos_is_last_and_each_end_stands_exactly_once(encoder: Encoder, text: str) -> None:
    (ids,) = encoder.tokeniser.ids([text])
    assert ids[-1] == EOS and ids.count(EOS) == 1
    assert ids[0] == BOS and ids.count(BOS) == 1
    assert len(ids) <= encoder.tokeniser.framing.max_tokens


# ids of Mistral-7B's own tokenizer, version 1
GOLDEN = {
    "": [BOS, EOS],
    "  lead": [BOS, 259, 1736, EOS],
    "\x00": [BOS, 28705, 3, EOS],
    "🙂": [BOS, 28705, 29340, EOS],
    "漢字 A": [BOS, 28705, 233, 191, 165, 29031, 330, EOS],
    "e\u0301": [BOS, 317, 28949, EOS],
    "a</s>": [BOS, 264, 700, 28713, 28767, EOS],
    "\n\n": [BOS, 28705, 13, 13, EOS],
}


def test_truncated_text_is_not_decoded_and_encoded_again(
    encoder: Encoder, base: Path, make_artifact: MakeArtifact
) -> None:
    assert dict(zip(GOLDEN, encoder.tokeniser.ids(list(GOLDEN)), strict=True)) == GOLDEN
    # cut within the bytes of a character, which decoding would replace
    (whole,) = encoder.tokeniser.ids(["👩🏽‍🚀" * 5])
    (cut,) = make_artifact(base, max_tokens=12).tokeniser().ids(["👩🏽‍🚀" * 5])
    assert cut == [*whole[:11], EOS]
    tokenizer = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    assert "\ufffd" in tokenizer.decode(cut)


@pytest.mark.parametrize(
    ("precision", "target"),
    [
        (Precision.FP32, CANONICAL),
        (Precision.FP32, CPU),
        (Precision.FP16, CANONICAL),
        (Precision.FP16, CPU),
        (Precision.BF16, CPU),
    ],
)
def test_pooling_indices_are_int64_and_run_on_the_cpu(
    base: Path,
    make_artifact: MakeArtifact,
    run_graph: RunGraph,
    make_batch: MakeBatch,
    precision: Precision,
    target: str,
) -> None:
    artifact = make_artifact(base, precision)
    found = run_graph(artifact, target, make_batch(5, 1, 17))
    assert found.dtype == np.float32 and np.isfinite(found).all()
    proto = onnx.load(artifact.graph(target), load_external_data=False)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info
    }
    (pool,) = [node for node in proto.graph.node if node.op_type == "LastTokenPoolNormalize"]
    indices = [node.input[1] for node in proto.graph.node if node.op_type == "GatherND"]
    # the last token's position, query and residual
    assert len(indices) == 3
    assert {types[name] for name in (*indices, pool.input[1])} == {onnx.TensorProto.INT64}


@pytest.mark.parametrize(
    "heads",
    [
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6},
        {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None},
    ],
    ids=["grouped", "one key head", "all key heads", "no head_dim"],
)
def test_head_size_and_key_heads_are_taken_from_the_config(
    make_model: MakeModel, make_artifact: MakeArtifact, heads: dict[str, int | None]
) -> None:
    model = make_model(initializer_range=0.1, **heads)
    artifact = make_artifact(model, max_tokens=None)
    found, expected = open_encoder(artifact.folder), open_reference(model)
    assert worst(found.encode(TEXTS), expected.encode(TEXTS)) <= CLOSE


def test_external_data_is_relative_and_loads_from_another_folder(
    artifact: Artifact, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved here"
    shutil.copytree(artifact.folder, moved)
    for path in moved.glob("*.onnx"):
        proto = onnx.load(path, load_external_data=False)
        entries = [entry for t in proto.graph.initializer for entry in t.external_data]
        assert {e.value for e in entries if e.key == "location"} == {DATA_FILE}
    expected = encoder.encode(TEXTS)
    monkeypatch.chdir("/")
    assert (open_encoder(moved).encode(TEXTS) == expected).all()
    monkeypatch.chdir(tmp_path)
    assert (open_encoder("moved here").encode(TEXTS) == expected).all()


@pytest.fixture(scope="module")
def massive(make_model: MakeModel) -> Path:
    """A model in which token 7 gets 40,000 in one channel from two down projections."""
    folder = make_model(initializer_range=0.2)
    weights = load_file(folder / SINGLE_FILE)
    channel, neuron, token = 3, 0, 7
    weights["embed_tokens.weight"][:, channel] = 0
    weights["embed_tokens.weight"][token] = 0
    weights["embed_tokens.weight"][token, channel] = 1000
    for layer in ("layers.0.", "layers.1."):
        # only token 7 has anything in the channel, so only there the neuron fires
        weights[f"{layer}self_attn.o_proj.weight"][channel] = 0
        weights[f"{layer}post_attention_layernorm.weight"][channel] = 1
        for name, value in (("gate_proj", 8), ("up_proj", 1)):
            weights[f"{layer}mlp.{name}.weight"][neuron] = 0
            weights[f"{layer}mlp.{name}.weight"][neuron, channel] = value
        weights[f"{layer}mlp.down_proj.weight"][channel] = 0
        weights[f"{layer}mlp.down_proj.weight"][channel, neuron] = 130
    halves = {name: weight.half() for name, weight in weights.items()}
    save_file(halves, folder / SINGLE_FILE, {"format": "pt"})
    return folder


def test_states_beyond_fp16_stay_finite_and_close(
    massive: Path, make_artifact: MakeArtifact, run_graph: RunGraph, make_batch: MakeBatch
) -> None:
    batch = make_batch(33, 5)
    batch.ids[:, 2] = 7
    model = transformers.AutoModel.from_pretrained(massive, dtype=torch.float32)
    with torch.inference_mode():
        states = model(torch.from_numpy(batch.ids), output_hidden_states=True).hidden_states
    assert max(float(state.abs().max()) for state in states) > LARGEST_FP16
    expected = open_reference(massive).backend.run(batch)
    artifact = make_artifact(massive, Precision.FP16)
    assert worst(run_graph(artifact, CPU, batch), expected) <= CLOSE
    found = run_graph(artifact, CANONICAL, batch)
    assert np.isfinite(found).all()
    # what an fp16 artifact promises: matrix products round to 11 bits
    assert (found * expected).sum(axis=1).min() >= 0.9999


def attribute_names(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    """Yield the names of all attributes, in branches too."""
    for node in body.node:
        for item in node.attribute:
            yield item.name
            if item.type == onnx.AttributeProto.GRAPH:
                yield from attribute_names(item.g)


# int4 rounds activations to 8 bits in the kernel, and its emulation and its bound say so
@pytest.mark.parametrize("precision", sorted(set(Precision) - {Precision.INT4}))
def test_no_reduced_accuracy_level(
    base: Path, make_artifact: MakeArtifact, precision: Precision
) -> None:
    artifact = make_artifact(base, precision)
    for target in artifact.manifest.graphs:
        proto = onnx.load(artifact.graph(target), load_external_data=False)
        bodies = [proto.graph, *proto.functions]
        names = {name for body in bodies for name in attribute_names(body)}
        assert "scale" in names and "accuracy_level" not in names


def test_sliding_window_is_that_of_the_reference(
    make_model: MakeModel, make_artifact: MakeArtifact
) -> None:
    model = make_model(sliding_window=16, initializer_range=0.2)
    found, expected = open_encoder(make_artifact(model).folder), open_reference(model)
    texts = [" a" * words for words in (11, 12, 13, 14, 15, 44, 45, 46)]
    assert {15, 16, 17, 48} <= {len(ids) for ids in found.tokeniser.ids(texts)}
    assert worst(found.encode(texts), expected.encode(texts)) <= CLOSE
    other = make_model(sliding_window=17, initializer_range=0.2)
    assert worst(expected.encode(texts), open_reference(other).encode(texts)) > 1000 * CLOSE
