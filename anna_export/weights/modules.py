"""What stands behind a decoder, read from a sentence-transformers folder.

`modules.json` lists modules in their order; each has a folder with its settings and weights. What
this package computes is read by the rules of sentence-transformers 6.2; everything else is refused
by the module's name and file, for a module that is left out makes another vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from anna_export.errors import DamagedError, InputError, UnsupportedError
from anna_export.files.containment import is_inside
from anna_export.files.json_file import read_json, read_json_list
from anna_export.files.model_folders import Adapters, from_last
from anna_export.spec import (
    LAST_TOKEN,
    Dense,
    EmbeddingSpec,
    Head,
    Similarity,
)
from anna_export.text.limit import LIMIT_FILE
from anna_export.text.prompts import PROMPTS_FILE
from anna_export.text.st_files import MODULE_CLASS, MODULES_FILE
from anna_export.weights.module_settings import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ListedModule,
    dense_weights,
    read_dense,
    read_pooling,
    require_whole_row,
)
from anna_export.weights.safetensors_files import StoredTensor

# What the decoder's own settings must say where they say it; nothing else may be set, but for a
# limit that framing reads, and for how batches are laid out, which changes no vector.
_DECODER: Final[Mapping[str, Any]] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
_HARMLESS: Final = ("max_seq_length", "unpad_inputs")


@dataclass(frozen=True, slots=True)
class Modules:
    """A head, where its weights are, and the files that say so.

    Args:
        head: What stands behind the decoder.
        similarity: What its vectors are compared by.
        folder: The folder whose modules.json was read; None where there is none.
        weights: Each Dense weight, by its name in a spec's `weight_shapes`.
        files: Every file that decides a vector, by its name within the folder.
        parts: The modules' own folders, by their names within the folder.
    """

    head: Head = LAST_TOKEN
    similarity: Similarity = Similarity.COSINE
    folder: Path | None = None
    weights: dict[str, StoredTensor] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    parts: Sequence[str] = ()

    def with_head(self, spec: EmbeddingSpec) -> EmbeddingSpec:
        """Return a decoder's spec with this head behind it.

        Raises:
            UnsupportedError: If the first Dense module takes rows of another length.
        """
        if self.head.dense:
            file = self.weights["head.dense.0.weight"].path.with_name(CONFIG_FILE)
            _require_inputs(self.head.dense[0], spec.dim, file)
        return replace(spec, head=self.head)


def read_modules(model: Path, adapter: Adapters = None) -> Modules:
    """Read what stands behind a model, or behind it and the adapter that was trained over it.

    Args:
        model: The model's folder; read where the adapter brings no modules.json.
        adapter: The adapters' folders: what the last one brings, counts.

    Returns:
        The head; the last token's state, scaled to unit length, where there is no modules.json.

    Raises:
        UnsupportedError: For a module, or a setting of one, that this package does not compute.
        DamagedError: If a file is not what sentence-transformers writes.
        MissingError: If a module's settings or weights are not there.
    """
    folders = [*from_last(adapter), model]
    folder = next((each for each in folders if (each / MODULES_FILE).exists()), None)
    if folder is None:
        for each in folders:
            _refuse_part_of_model(each)
            _similarity(each)
        return Modules()
    path = folder / MODULES_FILE
    modules = [_module(path, entry) for entry in read_json_list(path)]
    _require_plain_decoder(path, modules)
    behind = [module for module in modules[1:] if module.kind != "Dropout"]
    head = _head(path, behind)
    files = {MODULES_FILE: path}
    weights: dict[str, StoredTensor] = {}
    dense = [module for module in behind if module.kind == "Dense"]
    for index, module in enumerate(dense):
        weights |= dense_weights(module, index, head.dense[index].bias)
        files[f"{module.path}/{WEIGHTS_FILE}"] = module.folder / WEIGHTS_FILE
    settings = [module for module in behind if module.config_file.exists()]
    files |= {f"{module.path}/{CONFIG_FILE}": module.config_file for module in settings}
    # a module without settings may have no folder
    parts = [module.path for module in modules[1:] if module.folder.is_dir()]
    return Modules(head, _similarity(folder), folder, weights, files, parts)


def _module(path: Path, entry: Any) -> ListedModule:
    """Read an entry of modules.json."""
    written, subfolder = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("type", "path")
    )
    if not isinstance(written, str):
        raise DamagedError(
            f"expected a class as type of each module in {path}, found {entry!r}; correct it"
        )
    if not isinstance(subfolder, str) or not is_inside(path.parent, subfolder):
        raise DamagedError(
            f"expected folders inside {path.parent} as path of each module in {path}, found "
            f"{subfolder!r}; correct it"
        )
    if written == MODULE_CLASS:
        raise UnsupportedError(
            f"expected a model, found an artifact of this package ({written} in {path}); give the "
            "model that it was made from"
        )
    # old import paths of these classes and new ones differ in all but the last part
    ours = written.startswith("sentence_transformers.")
    kind = written.rpartition(".")[2] if ours else ""
    return ListedModule(kind, written, subfolder, path.parent / subfolder)


def _require_plain_decoder(path: Path, modules: Sequence[ListedModule]) -> None:
    """Refuse a folder whose first module is not a decoder in that very folder, with plain texts."""
    if not modules or modules[0].kind != "Transformer":
        raise UnsupportedError(
            f"expected a Transformer as the first module in {path}, found "
            f"{modules[0].type if modules else 'no module'}"
        )
    decoder = modules[0]
    if not decoder.folder.samefile(path.parent):
        raise UnsupportedError(
            f"expected the model's own files beside {path}, found them in {decoder.path}; bring "
            f"them together with SentenceTransformer({str(path.parent)!r}).save(NEW)"
        )
    file = decoder.folder / LIMIT_FILE
    for key, value in (read_json(file) if file.exists() else {}).items():
        expected = _DECODER.get(key)
        if key not in _HARMLESS and (value or None) not in (None, expected):
            raise UnsupportedError(
                f"expected {f'{key} {expected!r}' if expected else f'no {key}'} in {file}, found "
                f"{value!r}, which changes what the model is given or what is taken from it"
            )


def _refuse_part_of_model(folder: Path) -> None:
    """Refuse the first module's folder alone: what stands behind it lies one level up."""
    path = folder.resolve().parent / MODULES_FILE
    if folder.resolve().name == "0_Transformer" and path.exists():
        raise InputError(
            f"expected a whole model, found the first module of {path}; bring all of them together "
            f"with SentenceTransformer({str(path.parent)!r}).save(NEW), and give that"
        )


def _head(path: Path, modules: Sequence[ListedModule]) -> Head:
    """Read the modules behind the decoder: Pooling, then Dense modules, then Normalize, if any."""
    kinds = [module.kind for module in modules]
    order = ["Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * ("Normalize" in kinds)]
    if kinds != order:
        wrong = next(
            (module for module, kind in zip(modules, order, strict=False) if module.kind != kind),
            modules[len(order)] if len(modules) > len(order) else None,
        )
        raise UnsupportedError(
            f"expected Pooling, then Dense modules, then Normalize behind the Transformer in "
            f"{path}, found {f'{wrong.type} ({wrong.path})' if wrong else 'no Pooling'} there"
        )
    pooling, *dense = modules
    normalize = kinds[-1] == "Normalize"
    if normalize:
        require_whole_row(dense.pop())
    mode, include_prompt = read_pooling(pooling)
    layers = [read_dense(module) for module in dense]
    for before, layer, module in zip(layers, layers[1:], dense[1:], strict=False):
        _require_inputs(layer, before.out_features, module.config_file)
    return Head(mode, include_prompt, tuple(layers), normalize)


def _require_inputs(dense: Dense, length: int, file: Path) -> None:
    if dense.in_features != length:
        raise UnsupportedError(
            f"expected {length} as in_features in {file}, the length of the rows it is given, "
            f"found {dense.in_features}"
        )


def _similarity(folder: Path) -> Similarity:
    """Read what vectors are compared by, and refuse that they are cut."""
    path = folder / PROMPTS_FILE
    settings = read_json(path) if path.exists() else {}
    if (length := settings.get("truncate_dim")) is not None:
        raise UnsupportedError(
            f"expected whole vectors, found truncate_dim {length!r} in {path}; take it out, and "
            "ask for so many `dimensions` where vectors are asked for"
        )
    written = settings.get("similarity_fn_name")
    if written is None:
        return Similarity.COSINE
    if written not in list(Similarity):
        raise UnsupportedError(
            f"expected vectors compared by {', '.join(Similarity)}, found similarity_fn_name "
            f"{written!r} in {path}"
        )
    return Similarity(written)
