"""The files that sentence-transformers reads: modules, what they are, and the prompts."""

import json
from pathlib import Path
from typing import Any, Final

from anna_export.files.atomic import write_text
from anna_export.spec import Activation, EmbeddingSpec, Head, Similarity
from anna_export.text.prompts import DOCUMENTS, PROMPTS_FILE, QUERY, Prompts

MODULES_FILE: Final = "modules.json"
MODULE_CLASS: Final = "anna_export.st.AnnaEncoder"
_CLASSES: Final = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
ACTIVATIONS: Final = {
    Activation.IDENTITY: "torch.nn.modules.linear.Identity",
    Activation.TANH: "torch.nn.modules.activation.Tanh",
    Activation.RELU: "torch.nn.modules.activation.ReLU",
    Activation.GELU: "torch.nn.modules.activation.GELU",
    Activation.SIGMOID: "torch.nn.modules.activation.Sigmoid",
    Activation.SILU: "torch.nn.modules.activation.SiLU",
}


def write_artifact_modules(folder: Path, spec: EmbeddingSpec) -> None:
    """Name our module, which computes all of it; what stands behind the decoder is told beside."""
    _write(folder / MODULES_FILE, [{"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}])
    _write_settings(folder, spec)


def write_modules(folder: Path, spec: EmbeddingSpec) -> None:
    """List a model's modules, and write what they are, but for a Dense module's weights."""
    kinds = ["Transformer", *(path.partition("_")[2] for path in _settings(spec))]
    paths = ["", *_settings(spec)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": _CLASSES[kind]}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write(folder / MODULES_FILE, modules)
    _write_settings(folder, spec)


def write_prompts(
    folder: Path, prompts: Prompts, similarity: Similarity = Similarity.COSINE
) -> None:
    """Write prompts under their names, and under those that sentence-transformers looks for.

    Its `encode_query` takes the prompt named query, and no default; its `encode_document` takes
    document. Where no prompt has such a name, the default's and its documents' get it too.
    """
    config = {
        "model_type": "SentenceTransformer",
        "prompts": st_prompts(prompts),
        "default_prompt_name": prompts.default,
        "similarity_fn_name": similarity,
    }
    _write(folder / PROMPTS_FILE, config)


def st_prompts(prompts: Prompts) -> dict[str, str]:
    """Return what stands in front of a text, by every name that sentence-transformers looks for."""
    fronts = prompts.fronts()
    if not (queries := prompts.queries()):
        return fronts
    if documents := prompts.documents.get(queries):
        fronts.setdefault(DOCUMENTS[0], fronts[documents])
    return {QUERY: fronts[queries]} | fronts


def _settings(spec: EmbeddingSpec) -> dict[str, dict[str, Any]]:
    """Return each module's settings by its folder."""
    head: Head = spec.head
    settings: dict[str, dict[str, Any]] = {
        "1_Pooling": {
            "embedding_dimension": spec.dim,
            "pooling_mode": head.pooling,
            "include_prompt": head.include_prompt,
        }
    }
    for index, dense in enumerate(head.dense, start=2):
        settings[f"{index}_Dense"] = {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": dense.bias,
            "activation_function": ACTIVATIONS[dense.activation],
        }
    if head.normalize:
        settings[f"{len(head.dense) + 2}_Normalize"] = {}
    return settings


def _write_settings(folder: Path, spec: EmbeddingSpec) -> None:
    for path, settings in _settings(spec).items():
        (folder / path).mkdir(exist_ok=True)
        _write(folder / path / "config.json", settings)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
