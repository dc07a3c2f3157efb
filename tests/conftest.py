"""One small model, its adapters and its artifact, made once for all tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import functools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import peft
import pytest
import torch
import transformers

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.backends import open_encoder
from anna_export.backends.ort import multiply_exactly
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.encoder import Encoder
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.graph.names import ATTENTION_MASK, INPUT_IDS
from anna_export.quantise.options import storage
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.verify.texts import ordinary_texts
from demo.tokenizer import build_tokenizer, load_sentencepiece, save_tokenizer
from tests.support.shared import SharedFolders
from tests.support.types import (
    Fp8,
    MakeAdapter,
    MakeArtifact,
    MakeBatch,
    MakeModel,
    Probe,
    Refused,
    RunGraph,
)

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# head_dim is not hidden / heads, heads are grouped, and nothing is a power of two by accident
CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
}


def exact_options() -> onnxruntime.SessionOptions:
    """Return options under which this processor adds 8-bit products in 32 bits."""
    options = onnxruntime.SessionOptions()
    multiply_exactly(options)
    return options


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    base = tmp_path_factory.getbasetemp()
    # a worker's base lies in that of its run; a process without workers is the run
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return SharedFolders(run / "shared", tmp_path_factory)


@pytest.fixture(scope="session")
def tokenizer_folder(shared_folders: SharedFolders) -> Path:
    """The tokenizer of all models here."""

    def make(folder: Path) -> None:
        folder.mkdir()
        save_tokenizer(build_tokenizer(load_sentencepiece(), 4096), folder)

    return shared_folders.copy("tokenizer", make)


@pytest.fixture(scope="session")
def make_model(shared_folders: SharedFolders, tokenizer_folder: Path) -> MakeModel:
    """Writes a random Mistral-shaped model folder; keywords change its type, shards or config.

    With `shared` the folder is one for all processes and tests, which none may change.
    """

    def make(
        *,
        shared: bool = False,
        dtype: torch.dtype = torch.float32,
        shard: str = "5GB",
        headed: bool = False,
        seed: int = 0,
        **changes: Any,
    ) -> Path:
        def write(folder: Path) -> None:
            torch.manual_seed(seed)
            config = transformers.MistralConfig(**{**CONFIG, **changes})
            kind = transformers.MistralForCausalLM if headed else transformers.MistralModel
            model = kind(config).to(dtype)
            for name, parameter in model.named_parameters():
                # norms of ones would hide a norm that is applied to the wrong tensor
                if "norm" in name:
                    torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
            model.save_pretrained(folder, max_shard_size=shard)
            shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)

        arguments = (dtype, shard, headed, seed, sorted(changes.items()))
        give = shared_folders.folder if shared else shared_folders.copy
        return give("base", write, *arguments)

    return make


@pytest.fixture(scope="session")
def make_adapter(shared_folders: SharedFolders) -> MakeAdapter:
    """Writes a random LoRA folder over a base; keywords change its LoraConfig."""

    def make(base: Path, *, headed: bool = False, seed: int = 1, **changes: Any) -> Path:
        def write(folder: Path) -> None:
            torch.manual_seed(seed)
            kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
            model = kind.from_pretrained(base, dtype=torch.float32)
            config = peft.LoraConfig(
                **{"r": 4, "lora_alpha": 8, "target_modules": list(LINEAR), **changes}
            )
            tuned = peft.get_peft_model(model, config)
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name or "lora_embedding" in name:
                    torch.nn.init.normal_(parameter, std=0.05)
            tuned.save_pretrained(folder)

        # an adapter's config names its base's path
        arguments = (str(base), base, headed, seed, sorted(changes.items()))
        return shared_folders.copy("adapter", write, *arguments)

    return make


@pytest.fixture(scope="session")
def base(make_model: MakeModel) -> Path:
    return make_model(shared=True)


@pytest.fixture(scope="session")
def adapter(base: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(base)


@pytest.fixture(scope="session")
def artifact(base: Path, adapter: Path, shared_folders: SharedFolders) -> Artifact:
    """The fp32 artifact of base and adapter, proved; tests that change it work on a copy."""

    def write(folder: Path) -> None:
        export(Recipe(base, adapter, folder), stage)

    return open_artifact(shared_folders.copy("artifact", write, "proved", base, adapter))


@pytest.fixture(scope="session")
def encoder(artifact: Artifact) -> Encoder:
    return open_encoder(artifact.folder)


@pytest.fixture(scope="session")
def reference(base: Path, adapter: Path) -> Encoder:
    return open_reference(base, adapter)


@pytest.fixture(scope="session")
def make_artifact(shared_folders: SharedFolders) -> MakeArtifact:
    """Exports a model without proof, the same one only once; keywords are the precision's."""

    @functools.cache
    def make(
        model: Path,
        precision: Precision = Precision.FP32,
        adapter: Path | None = None,
        max_tokens: int | None = 64,
        *,
        prompts: Path | None = None,
        calibration: Path | None = None,
        **options: Any,
    ) -> Artifact:
        def write(folder: Path) -> None:
            stored = storage(precision, calibration=calibration, **options)
            recipe = Recipe(
                model, adapter, folder, stored, max_tokens, verify=False, prompts=prompts
            )
            export(recipe, stage)

        arguments = (model, precision, adapter, max_tokens, prompts, calibration)
        others = sorted(options.items())
        return open_artifact(shared_folders.copy("artifact", write, *arguments, others))

    return make


@pytest.fixture(scope="session")
def sharp(make_model: MakeModel) -> Path:
    """A model whose attention is far from uniform, so that whatever it sees and where, shows."""
    return make_model(shared=True, initializer_range=0.2)


@pytest.fixture(scope="session")
def fp8(sharp: Path, make_artifact: MakeArtifact) -> Fp8:
    """That model in fp8 with a high-precision type; so small a model is far off, and may be."""
    return lambda high_precision: make_artifact(
        sharp, Precision.FP8, max_tokens=256, high_precision=high_precision, max_loss=1
    )


@pytest.fixture(scope="session")
def sharp_adapter(sharp: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(sharp)


@pytest.fixture(scope="session")
def int8(sharp: Path, sharp_adapter: Path, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(sharp, Precision.INT8, sharp_adapter, max_loss=1)


@pytest.fixture(scope="session")
def uneven(make_model: MakeModel) -> Path:
    """Inputs of two blocks, of an odd number of blocks (down_proj), and of none (o_proj: 80)."""
    return make_model(
        shared=True,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=5,
        num_key_value_heads=1,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def int4(uneven: Path, make_artifact: MakeArtifact) -> Artifact:
    """That model in int4; so small a model is far off, and may be."""
    return make_artifact(uneven, Precision.INT4, max_tokens=256, max_loss=1)


@pytest.fixture(scope="session")
def probe() -> Probe:
    """Runs a loaded graph of an artifact with these values, of one type, as further outputs."""

    def run(
        artifact: Artifact,
        model: ir.Model,
        values: Iterable[ir.Value],
        batch: TokenBatch,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> dict[ir.Value, torch.Tensor]:
        wanted = list(dict.fromkeys(values))
        for value in wanted:
            value.dtype = dtype
        model.graph.outputs.extend(wanted)
        # beside the weights, and gone before anything counts the artifact's files
        path = artifact.folder / "probed.onnx"
        try:
            ir.save(model, path)
            session = onnxruntime.InferenceSession(
                path, exact_options(), providers=["CPUExecutionProvider"]
            )
        finally:
            path.unlink()
        feeds = {INPUT_IDS: batch.ids, ATTENTION_MASK: batch.mask}
        found = session.run([value.name for value in wanted], feeds)
        return dict(zip(wanted, map(torch.from_numpy, found), strict=True))

    return run


@pytest.fixture(scope="session")
def run_graph() -> RunGraph:
    """Runs one of an artifact's graphs, by target, as it is, in ONNX Runtime on the CPU."""

    @functools.cache
    def session(path: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            path, exact_options(), providers=["CPUExecutionProvider"]
        )

    def run(artifact: Artifact, target: str, batch: TokenBatch) -> np.ndarray:
        feeds = {"input_ids": batch.ids, "attention_mask": batch.mask}
        return session(artifact.graph(target)).run(None, feeds)[0]

    return run


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Draws rows of the given lengths; their padding is drawn too, so that seeing it shows."""

    def make(*lengths: int, seed: int = 0) -> TokenBatch:
        ids = np.random.default_rng(seed).integers(3, 32000, (len(lengths), max(lengths)))
        return TokenBatch(ids, np.array(lengths))

    return make


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of texts to calibrate on, so few and short that it takes a moment."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in ordinary_texts(16) if len(text) < 250))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where outputs would go; it holds one file, a folder and an artifact's mark."""
    place = tmp_path / "place"
    (place / "taken").mkdir(parents=True)
    (place / "taken" / "letter").write_text("dear")
    (place / "file").write_text("")
    return place


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, and returns its line."""

    def refuse(*args: object) -> str:
        before, changed = contents(place), place.stat().st_mtime_ns
        code = run([str(arg) for arg in args])
        found = capsys.readouterr()
        assert code == 2, found.err
        assert found.out == "" and found.err.count("\n") == 1, found.err
        assert found.err.startswith("anna-export: ") and "Traceback" not in found.err
        assert contents(place) == before and place.stat().st_mtime_ns == changed
        return found.err.removeprefix("anna-export: ").rstrip("\n")

    return refuse
