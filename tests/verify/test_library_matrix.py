"""An artifact gives the vectors of the library's own `encode`, or an export refuses in one line.

Every head, every way an adapter is kept, every way a tokenizer ends a text. The oracle is
sentence-transformers over the folder that it wrote itself, or transformers and peft over a plain
one; none of the product's reference is used.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import Tokenizer, processors

from anna_export import open_encoder
from anna_export.artifact.folder import Artifact
from anna_export.console.output import stage
from anna_export.cosine import cosines
from anna_export.errors import AnnaError
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.verify.models import open_models
from anna_export.verify.mteb_model import NO_ID
from anna_export.weights.merge import write_merged
from tests.support.types import MakeModel

MAX_TOKENS = 24
TEXTS = [
    "What is the capital of France?",
    "a few",
    "The card has not arrived. " * 12,  # longer than the longest sequence
    "It rains, and the fox is wet; nobody minds.",
]
PROMPTS = {"query": "Find what answers this: ", "document": ""}
DIM = 40
TARGETS = ["q_proj", "v_proj", "down_proj"]

HEADS: dict[str, Callable[[], list[torch.nn.Module]]] = {
    "last": lambda: [Pooling(DIM, "lasttoken"), Normalize()],
    "mean": lambda: [Pooling(DIM, "mean"), Normalize()],
    "cls": lambda: [Pooling(DIM, "cls"), Normalize()],
    "last and Dense": lambda: [
        Pooling(DIM, "lasttoken"),
        Dense(DIM, 24, activation_function=torch.nn.Tanh()),
        Dense(24, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ],
    "mean without prompt": lambda: [Pooling(DIM, "mean", include_prompt=False), Normalize()],
    "mean, any length": lambda: [Pooling(DIM, "mean")],
}
# What the post-processor puts behind a text, and what tokenizer_config.json says of it.
ENDINGS = {"adds EOS": (True, True), "adds none": (False, False), "contradicts": (False, True)}
WAYS = ("peft", "sentence-transformers", "merged")


def end_texts(folder: Path, ending: str) -> None:
    """Write a folder's tokenizer so that it ends a text in this way."""
    adds, claims = ENDINGS[ending]
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    single = ["<s>", "$A", "</s>"] if adds else ["<s>", "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(path))
    settings = folder / "tokenizer_config.json"
    config = json.loads(settings.read_text()) | {"add_bos_token": True, "add_eos_token": claims}
    config |= {"model_max_length": MAX_TOKENS, "split_special_tokens": False}
    settings.write_text(json.dumps(config))


def tune(model: Any, add: Callable[[peft.LoraConfig], Any]) -> Any:
    """Put a random adapter on a model."""
    torch.manual_seed(3)
    tuned = add(peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return tuned


def st_model(base: Path, head: str) -> SentenceTransformer:
    torch.manual_seed(2)
    modules = [Transformer(str(base)), *HEADS[head]()]
    return SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")


def peft_adapter(base: Path, folder: Path) -> Path:
    model = transformers.AutoModel.from_pretrained(base, dtype=torch.float32)
    tune(model, partial(peft.get_peft_model, model)).save_pretrained(folder)
    return folder


def exported(model: Path, adapter: Path | None, out: Path, **options: Any) -> Artifact:
    return export(Recipe(model, adapter, out, verify=False, **options), stage).artifact


def require_alike(artifact: Artifact, prompt: str | None, expected: np.ndarray) -> None:
    vectors = open_encoder(artifact.folder).encode(TEXTS, "" if prompt is None else prompt)
    assert vectors.shape == expected.shape
    assert cosines(vectors, expected).min() >= 0.999999
    lengths = np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-4)


@pytest.fixture(scope="module")
def decoder(make_model: MakeModel) -> Path:
    return make_model(shared=True, num_hidden_layers=2, seed=11)


@pytest.fixture
def base(decoder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A decoder whose tokenizer ends texts as the test says."""
    folder = tmp_path / "base"
    model = transformers.AutoModel.from_pretrained(decoder, dtype=torch.float32)
    model.save_pretrained(folder)
    for path in decoder.glob("tok*"):
        (folder / path.name).write_bytes(path.read_bytes())
    end_texts(folder, request.node.callspec.params["ending"])
    return folder


def merge(model: Path, adapter: Path, out: Path, *, undecided: bool) -> None:
    """Merge; where files leave open whether an end token is pooled, once it is said: none is."""
    if undecided:
        with pytest.raises(AnnaError, match="`eos`") as refused:
            write_merged(model, adapter, out)
        assert "\n" not in str(refused.value) and not out.exists()
    write_merged(model, adapter, out, eos=False if undecided else None)


def of_library(
    base: Path, head: str, way: str, ending: str, folder: Path
) -> tuple[Path, Path | None, SentenceTransformer]:
    """Return what is exported, base and adapter, and the library's model of it."""
    if way == "sentence-transformers":
        model = st_model(base, head)
        tune(model, model.add_adapter)
        model.save_pretrained(str(folder / "adapter"))
        end_texts(folder / "adapter", ending)  # what transformers 5 leaves out when it saves
        return base, folder / "adapter", SentenceTransformer(str(folder / "adapter"), device="cpu")
    st_model(base, head).save_pretrained(str(folder / "model"))
    end_texts(folder / "model", ending)
    adapter = peft_adapter(base, folder / "adapter")
    if way == "merged":
        undecided = ending == "contradicts" and head.startswith("last")
        merge(folder / "model", adapter, folder / "merged", undecided=undecided)
        return folder / "merged", None, SentenceTransformer(str(folder / "merged"), device="cpu")
    tuned = SentenceTransformer(str(folder / "model"), device="cpu")
    tuned.load_adapter(str(adapter))
    return folder / "model", adapter, tuned


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", HEADS)
def test_vectors_are_the_librarys_or_one_line_refuses(
    base: Path, head: str, way: str, ending: str, tmp_path: Path
) -> None:
    model, adapter, library = of_library(base, head, way, ending, tmp_path)
    options: dict[str, Any] = {}
    if ending == "contradicts" and head.startswith("last") and way != "merged":
        # the files leave open whether the token that is pooled is the end token
        with pytest.raises(AnnaError, match=r"add_eos_token.*`eos`") as refused:
            exported(model, adapter, tmp_path / "out")
        assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
        options["eos"] = False  # as the library runs it
    artifact = exported(model, adapter, tmp_path / "out", **options)
    require_alike(artifact, None, library.encode(TEXTS))
    require_alike(artifact, "query", library.encode(TEXTS, prompt_name="query"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("way", ["peft", "merged"])
def test_vectors_of_a_plain_folder_are_those_of_its_last_token_or_one_line_refuses(
    base: Path, way: str, ending: str, tmp_path: Path
) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    decoder = transformers.AutoModel.from_pretrained(base, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(decoder, str(adapter)).eval()
    model: tuple[Path, Path | None] = (base, adapter)
    undecided = ending != "adds EOS"
    options: dict[str, Any] = {}
    if way == "merged":
        merge(base, adapter, tmp_path / "merged", undecided=undecided)
        model = tmp_path / "merged", None
    elif undecided:
        with pytest.raises(AnnaError, match="`eos`"):
            exported(*model, tmp_path / "out")
        options["eos"] = False
    artifact = exported(*model, tmp_path / "out", **options)
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden = tuned(**inputs).last_hidden_state
        rows.append(torch.nn.functional.normalize(hidden[0, -1], dim=0).numpy())
    require_alike(artifact, None, np.stack(rows))


@pytest.mark.parametrize("ending", ["adds none"])
def test_an_end_token_that_was_chosen_is_the_references_too(
    base: Path, ending: str, tmp_path: Path
) -> None:
    exported_with = export(Recipe(base, None, tmp_path / "out", eos=True), stage)
    assert exported_with.parity is not None and exported_with.parity.verdict == "pass"
    artifact = exported_with.artifact
    expected = artifact.tokeniser().ids(TEXTS)
    assert all(row[-1] == artifact.manifest.framing.eos_id for row in expected)
    # of the proof of vectors, and of the tasks
    reference = next(open_models(artifact, base, None, "auto", "cpu", stage, NO_ID))
    assert reference.encoder.tokeniser.ids(TEXTS) == expected
