"""Folders that sentence-transformers itself writes, of every head that an export reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer


def dense(
    in_features: int,
    out_features: int,
    activation: torch.nn.Module | None = None,
    bias: bool = True,
) -> Dense:
    """Return a Dense module of random weights, far from the identity."""
    torch.manual_seed(in_features * 1000 + out_features)
    return Dense(in_features, out_features, bias, activation or torch.nn.Tanh())


def save_st(
    base: Path,
    folder: Path,
    pooling: str = "lasttoken",
    *,
    layers: Sequence[torch.nn.Module] = (),
    normalize: bool = True,
    include_prompt: bool = True,
    prompts: Mapping[str, str] | None = None,
    default: str | None = None,
) -> Path:
    """Save a model as sentence-transformers does, and return its folder."""
    transformer = Transformer(str(base))
    modules: list[torch.nn.Module] = [transformer]
    width = transformer.get_embedding_dimension()
    modules.append(Pooling(width, pooling, include_prompt))
    modules.extend(layers)
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules,
        prompts=dict(prompts or {}),
        default_prompt_name=default,
        device="cpu",
    )
    model.save(str(folder), create_model_card=False)
    return folder


def open_st(folder: Path) -> SentenceTransformer:
    """Load a folder in fp32 on the CPU."""
    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
