"""An artifact's stored weights, read as fp32, and the empty model of transformers they fit."""

from collections.abc import Callable
from typing import Any, Final

import onnx_ir as ir
import torch

from anna_export.artifact import Artifact
from anna_export.quantise.scheme import CANONICAL
from anna_export.spec import EmbeddingSpec

# name of a weight in a MistralModel's state dict → its fp32 value, (out, in) for a matrix
ReadWeight = Callable[[str], torch.Tensor]

_DTYPES: Final = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def stored_weights(artifact: Artifact) -> ReadWeight:
    """Return a reader of an artifact's weights; it reads one at a time and maps no file."""
    graph = ir.load(artifact.graph(CANONICAL)).graph
    stored = {name: value.const_value for name, value in graph.initializers.items()}

    def read(name: str) -> torch.Tensor:
        tensor = stored[name]
        assert tensor is not None
        weight = _read(tensor)
        turned = weight.ndim == 2 and name != "embed_tokens.weight"
        return weight.T if turned else weight

    return read


def empty_model(spec: EmbeddingSpec) -> Any:
    """Return transformers' MistralModel of these numbers, its weights on the meta device."""
    from transformers import MistralConfig, MistralModel
    from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

    config = MistralConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.dim,
        intermediate_size=spec.ffn_dim,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.max_positions,
        sliding_window=spec.sliding_window,
        rope_parameters={"rope_theta": spec.rope_theta, "rope_type": "default"},
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = MistralModel(config).eval()
    # its frequencies are computed, not loaded
    model.rotary_emb = MistralRotaryEmbedding(config)
    return model


def _read(tensor: ir.TensorProtocol) -> torch.Tensor:
    if isinstance(tensor, ir.ExternalTensor):
        assert tensor.offset is not None and tensor.length is not None
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            data = bytearray(file.read(tensor.length))
    else:  # small enough to stand in the graph itself
        data = bytearray(tensor.tobytes())
    values = torch.frombuffer(data, dtype=_DTYPES[tensor.dtype])
    return values.reshape(tensor.shape.numpy()).float()
