"""An artifact's stored weights, read as fp32, and the empty model of transformers they fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch

from anna_export.artifact import Artifact
from anna_export.data_file import DATA_FILE
from anna_export.errors import DamagedError
from anna_export.quantise.scheme import CANONICAL
from anna_export.safetensors_files import DTYPES, StoredTensor
from anna_export.spec import EmbeddingSpec

# name of a weight in a MistralModel's state dict → its fp32 value, (out, in) for a matrix
ReadWeight = Callable[[str], torch.Tensor]

# as safetensors_files names them
_DTYPES: Final = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
}


def stored_weights(artifact: Artifact) -> ReadWeight:
    """Return a reader of an artifact's weights; it reads one at a time and maps no file.

    Raises:
        DamagedError: If a weight lies anywhere but in the artifact's own data file.
    """
    graph = ir.load(artifact.graph(CANONICAL)).graph
    stored = {name: value.const_value for name, value in graph.initializers.items()}
    placed = {
        name: _placed(artifact.folder, name, tensor)
        for name, tensor in stored.items()
        if isinstance(tensor, ir.ExternalTensor)
    }

    def read(name: str) -> torch.Tensor:
        weight = placed[name].read() if name in placed else _inline(stored[name])
        turned = weight.ndim == 2 and name != "embed_tokens.weight"
        return (weight.T if turned else weight).float()

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


def _placed(folder: Path, name: str, tensor: ir.ExternalTensor) -> StoredTensor:
    """Return where a weight lies: onnx_ir would follow its location out of the folder."""
    path = folder / tensor.location
    if tensor.location != DATA_FILE or path.resolve().parent != folder.resolve():
        raise DamagedError(
            f"expected {name} in {DATA_FILE} of {folder}, found external data at "
            f"{path.resolve()}; copy or export the artifact again"
        )
    if tensor.length != tensor.nbytes:
        raise DamagedError(
            f"expected {tensor.nbytes} bytes of external data for {name} in {folder}, found "
            f"{tensor.length}; copy or export the artifact again"
        )
    dtype = _DTYPES.get(tensor.dtype, tensor.dtype.name)  # reading refuses what is no float
    shape = tensor.shape.numpy()
    return StoredTensor(path, name, dtype, shape, tensor.offset or 0, tensor.length)


def _inline(tensor: ir.TensorProtocol | None) -> torch.Tensor:
    """Read a weight that is small enough to stand in the graph itself."""
    assert tensor is not None
    dtype = DTYPES[_DTYPES[tensor.dtype]]
    values = torch.frombuffer(bytearray(tensor.tobytes()), dtype=dtype)
    return values.reshape(tensor.shape.numpy())
