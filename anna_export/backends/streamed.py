"""PyTorch, one matrix in memory at a time: for models whose fp32 weights do not fit.

The modules and their forward pass are transformers' own; every weight is read when its module is
called and dropped after it, so one batch costs one pass over the weights on disk.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from anna_export.adapter import Delta
from anna_export.artifact import Artifact
from anna_export.backends.pytorch import PytorchBackend, quiet
from anna_export.checkpoint import Checkpoint
from anna_export.quantise.scheme import CANONICAL
from anna_export.spec import EmbeddingSpec

# name of a weight in a MistralModel's state dict → its fp32 value, (out, in) for a matrix
ReadWeight = Callable[[str], torch.Tensor]


def open_streamed_reference(checkpoint: Checkpoint) -> PytorchBackend:
    """Stream base and adapter, the adapter unmerged: y = W x + s B (A x)."""
    deltas = checkpoint.adapter.deltas if checkpoint.adapter is not None else {}
    # the embedding is looked up, not multiplied: its delta is part of the rows that are read
    apart = {name: delta for name, delta in deltas.items() if not delta.embedding}

    def read(name: str) -> torch.Tensor:
        return checkpoint.read(name, torch.float32, merge=name not in apart)

    return _backend(checkpoint.spec, read, apart, "base and adapter")


def open_streamed_artifact(artifact: Artifact) -> PytorchBackend:
    """Stream an artifact's stored weights: what a graph over them computes, without the graph."""
    graph = ir.load(artifact.graph(CANONICAL)).graph
    stored = {name: value.const_value for name, value in graph.initializers.items()}

    def read(name: str) -> torch.Tensor:
        tensor = stored[name]
        assert tensor is not None
        weight = _read_stored(tensor)
        matrix = weight.ndim == 2 and name != "embed_tokens.weight"
        return weight.T if matrix else weight

    return _backend(artifact.manifest.spec, read, {}, "the artifact's stored weights")


def _read_stored(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Read one weight of a graph as fp32, without mapping the data file."""
    dtypes = {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
    }
    if isinstance(tensor, ir.ExternalTensor):
        assert tensor.offset is not None and tensor.length is not None
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            data = bytearray(file.read(tensor.length))
    else:  # small enough to stand in the graph itself
        data = bytearray(tensor.tobytes())
    shape = tensor.shape.numpy()
    return torch.frombuffer(data, dtype=dtypes[tensor.dtype]).reshape(shape).float()


def _backend(
    spec: EmbeddingSpec, read: ReadWeight, deltas: dict[str, Delta], what: str
) -> PytorchBackend:
    backend = PytorchBackend(_streamed_model(spec, read, deltas), spec)
    backend.arithmetic = f"fp32 in PyTorch on CPU, layer by layer, from {what}"
    return backend


def _streamed_model(spec: EmbeddingSpec, read: ReadWeight, deltas: dict[str, Delta]) -> Any:
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
    with quiet(), torch.device("meta"):
        model = MistralModel(config).eval()
    model.rotary_emb = MistralRotaryEmbedding(config)
    for name, module in model.named_modules():
        if module._parameters:
            _stream(module, f"{name}.weight", read, deltas.get(f"{name}.weight"))
    return model


def _stream(module: torch.nn.Module, name: str, read: ReadWeight, delta: Delta | None) -> None:
    absent = module.weight

    def load(module: torch.nn.Module, _: Any) -> None:
        module.weight = torch.nn.Parameter(read(name), requires_grad=False)

    def drop(
        module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> Any:
        module.weight = absent
        if delta is None:
            return output
        b, a = delta.factors()
        return output + (inputs[0] @ a.T @ b.T) * delta.scale

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
