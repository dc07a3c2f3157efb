"""Writes the repository: a tokenizer for each prompt, the model once, and an ensemble of both."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from anna_export.artifact.folder import Artifact
from anna_export.choices import Target
from anna_export.engines.stored import StoredEngine, stored_engines
from anna_export.errors import InputError
from anna_export.files.atomic import staged
from anna_export.files.disk import require_disk
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.names import CANONICAL, CPU
from anna_export.integrations.triton.configs import (
    encoder_config,
    ensemble_config,
    pbtxt,
    tokenizer_config,
)
from anna_export.spec import Precision
from anna_export.text.framing import TOKENIZER_FILE
from anna_export.text.prompts import Prompt

# What marks a folder as one that may be overwritten.
MARK: Final = "anna-export.json"
# What the tokenizer's model imports of anna_export.
_MODULES: Final = ("errors.py",)
_PACKAGES: Final = ("files", "spec", "text")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DELAY_US: Final = 1000
_ENSEMBLE_TEXT: Final = "An ensemble needs a version, and its version needs no file but this one.\n"


@dataclass(frozen=True, slots=True)
class Package:
    """What is written.

    Args:
        name: Of the ensemble without a prompt; the others are NAME.PROMPT.
        device: "cpu" or "cuda".
        engine: A compute capability, such as "sm_90", whose TensorRT engine replaces the graph;
            None for ONNX Runtime.
        batch: Most texts that Triton computes together.

    Raises:
        InputError: If the name is none that Triton takes, or the batch is empty.
    """

    name: str
    device: str = "cpu"
    engine: str | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"expected a model `name` of letters, digits, '_', '.' and '-', found {self.name!r}"
            )
        if self.batch < 1:
            raise InputError(f"expected `batch` of at least 1, found {self.batch}")


def write_repository(
    artifact: Artifact, package: Package, out: Path, *, overwrite: bool
) -> dict[str, str]:
    """Write a model repository, whole or not at all.

    Returns:
        By the name of each ensemble, the name of its prompt; "" for none.

    Raises:
        InputError: If the artifact has no such engine, or no graph for the device.
        AnnaError: If the folder is taken, or the disk full.
    """
    engine = _engine(artifact, package.engine) if package.engine is not None else None
    if engine is None and package.device == "cuda":
        _require_graph_for_cuda(artifact)
    if artifact.manifest.spec.head.leaves_out_prompt:
        raise InputError(
            f"expected a model that pools its prompts' tokens too, found {artifact.folder} with "
            f"{artifact.manifest.spec.head.describe()}: its graph asks how many there are, which "
            "an ensemble does not pass on; serve it with anna-export serve"
        )
    require_disk(out, artifact.size_bytes)
    names = _ensembles(artifact, package.name)
    dim, encoder = artifact.manifest.spec.embedding_dim, f"{package.name}.encoder"
    with staged(out, overwrite=overwrite, holding=MARK) as folder:
        on_gpu = engine is not None or package.device == "cuda"
        kind = "KIND_GPU" if on_gpu else "KIND_CPU"
        backend = {"backend": "onnxruntime"} if engine is None else {"platform": "tensorrt_plan"}
        config = encoder_config(encoder, backend, package.batch, dim, _DELAY_US, kind)
        _put_encoder(artifact, package, engine, _put_model(folder, config))
        for name, prompt in names.items():
            tokenizer = f"{name}.tokenizer"
            version = _put_model(folder, tokenizer_config(tokenizer, package.batch, _DELAY_US))
            _put_tokenizer(artifact, artifact.manifest.prompts.find(prompt), version)
            ensemble = ensemble_config(name, tokenizer, encoder, package.batch, dim)
            # stores of objects, git and archives drop a folder that is empty, and Triton then
            # finds no version of the model
            (_put_model(folder, ensemble) / "README").write_text(_ENSEMBLE_TEXT, encoding="utf-8")
        mark = {"artifact_id": artifact.manifest.artifact_id, "ensembles": names}
        (folder / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    return names


def _ensembles(artifact: Artifact, name: str) -> dict[str, str]:
    """Name an ensemble for no prompt, and one for each."""
    prompts = {name: ""}
    for prompt in sorted(artifact.manifest.prompts.by_name):
        ensemble = f"{name}.{re.sub(r'[^A-Za-z0-9_-]', '_', prompt)}"
        if ensemble in prompts:
            raise InputError(
                f"expected prompts whose names differ in letters and digits, found {prompt!r} and "
                f"{prompts[ensemble]!r}; rename one of them"
            )
        prompts[ensemble] = prompt
    return prompts


def _put_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write a model's config and return the folder of its first version."""
    version = folder / config["name"] / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(pbtxt(config), encoding="utf-8")
    return version


def _put_encoder(
    artifact: Artifact, package: Package, engine: StoredEngine | None, version: Path
) -> None:
    if engine is not None:
        shutil.copyfile(engine.path, version / "model.plan")
        return
    graph = artifact.graph(CANONICAL if package.device == "cuda" else CPU)
    shutil.copyfile(graph, version / "model.onnx")
    # a copy: runtimes refuse weights that have another name too
    shutil.copyfile(artifact.folder / DATA_FILE, version / DATA_FILE)


def _put_tokenizer(artifact: Artifact, prompt: Prompt, version: Path) -> None:
    manifest = artifact.manifest
    shutil.copyfile(artifact.folder / TOKENIZER_FILE, version / TOKENIZER_FILE)
    config = {
        "framing": asdict(manifest.framing),
        "prompt": asdict(prompt),
        "golden": [golden.model_dump() for golden in manifest.golden],
        "tokenizers": manifest.versions.get("tokenizers"),
    }
    (version / "framing.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    source, modules = resources.files("anna_export"), version / "anna_export"
    model = source / "integrations" / "triton" / "tokenizer_model.py"
    (version / "model.py").write_bytes(model.read_bytes())
    modules.mkdir()
    (modules / "__init__.py").write_text("", encoding="utf-8")
    for module in _MODULES:
        (modules / module).write_bytes((source / module).read_bytes())
    for package in _PACKAGES:
        _copy_package(source / package, modules / package)


def _copy_package(source: Traversable, target: Path) -> None:
    """Copy a package's modules, and those of the packages in it."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.name.endswith(".py"):
            (target / entry.name).write_bytes(entry.read_bytes())
        elif entry.is_dir() and (entry / "__init__.py").is_file():
            _copy_package(entry, target / entry.name)


def _engine(artifact: Artifact, name: str) -> StoredEngine:
    """Return the TensorRT engine for a compute capability.

    Raises:
        InputError: If there is none, or it takes prefixes, which Triton has none of.
    """
    for engine in stored_engines(artifact):
        record = engine.record
        if (record.capability.name, record.target) != (name, Target.TENSORRT):
            continue
        if record.prefix:
            raise InputError(
                "expected an engine without prefixes, which Triton would have to be sent, found "
                f"{engine.path}; export without prompts, or leave out `engine`"
            )
        return engine
    others = ", ".join(str(engine.record) for engine in stored_engines(artifact)) or "none"
    raise InputError(
        f"expected a TensorRT engine for {name} in {artifact.folder}, found {others}; build one "
        "with anna-export build for the target tensorrt (Triton runs none of TensorRT-RTX)"
    )


def _require_graph_for_cuda(artifact: Artifact) -> None:
    precision = artifact.manifest.precision
    if precision in (Precision.INT8, Precision.INT4):
        raise InputError(
            f"expected `device` cpu, found cuda: {precision} is for CPUs; package an artifact in "
            "fp16, bf16 or fp32 for a GPU"
        )
