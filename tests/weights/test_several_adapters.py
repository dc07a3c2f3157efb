"""Several adapters: each merged into what those before it left, as peft does in turn."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from anna_export.artifact.folder import open_artifact
from anna_export.cli import run
from anna_export.errors import ShapeError
from anna_export.reference.load import open_reference
from anna_export.reference.streamed import open_streamed_checkpoint
from anna_export.text.framing import TOKENIZER_FILE, find_tokenizer
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import PROMPTS_FILE, Prompt
from anna_export.weights.adapter import WEIGHTS_FILE
from anna_export.weights.checkpoint import SINGLE_FILE, Checkpoint
from anna_export.weights.merge import write_merged
from tests.support.folders import edit_tensors
from tests.support.refusals import refusal
from tests.support.types import MakeAdapter, MakeBatch, MakeModel
from tests.weights.conftest import ROWS
from tests.weights.test_checkpoint import Q, by_peft, require_equal, trained

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

KINDS: dict[str, dict[str, Any]] = {
    "linear layers": {},
    "a saved linear layer": {"target_modules": ["v_proj"], "modules_to_save": ["q_proj", "norm"]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a saved embedding": {"modules_to_save": ["embed_tokens"]},
    "trained token rows": {"trainable_token_indices": [ROWS - 1, 3]},
    "other token rows": {"trainable_token_indices": [3, 7]},
    "trained token rows alone": {"target_modules": ["v_proj"], "trainable_token_indices": [2]},
}


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_two_adapters_are_pefts_merge_of_both_in_their_order(
    small: Path, make_adapter: MakeAdapter, first: str, second: str
) -> None:
    adapters = [
        trained(make_adapter(small, seed=seed, **KINDS[kind]))
        for seed, kind in ((3, first), (4, second))
    ]
    require_equal(Checkpoint.open(small, adapters), by_peft(small, *adapters))


def test_three_adapters_are_pefts_merge(small: Path, make_adapter: MakeAdapter) -> None:
    kinds = ("the embedding", "trained token rows", "the embedding")
    adapters = [
        trained(make_adapter(small, seed=seed, **KINDS[kind])) for seed, kind in enumerate(kinds, 5)
    ]
    require_equal(Checkpoint.open(small, adapters), by_peft(small, *adapters))


def test_delta_of_the_embedding_adds_to_rows_that_an_earlier_adapter_trained(
    small: Path, make_adapter: MakeAdapter
) -> None:
    first, second = (
        trained(make_adapter(small, seed=seed, **KINDS[kind]))
        for seed, kind in ((3, "trained token rows"), (4, "the embedding"))
    )
    # peft saves the embedding with its LoRA, which would replace those rows
    edit_tensors(second / WEIGHTS_FILE, lambda key, t: None if ".base_layer." in key else t)
    checkpoint = Checkpoint.open(small, [first, second])
    require_equal(checkpoint, by_peft(small, first, second))


def test_sum_of_several_is_rounded_once(small: Path, make_adapter: MakeAdapter) -> None:
    adapters = [make_adapter(small, seed=seed) for seed in (3, 4)]
    checkpoint = Checkpoint.open(small, adapters)
    exact = checkpoint.read(Q, torch.float32)
    assert checkpoint.read(Q, torch.bfloat16).equal(exact.bfloat16())
    assert checkpoint.read(Q, torch.bfloat16, transpose=True).equal(exact.bfloat16().T)


def test_turned_embedding_holds_the_same_rows(small: Path, make_adapter: MakeAdapter) -> None:
    adapters = [
        trained(make_adapter(small, seed=seed, **KINDS[kind]))
        for seed, kind in ((3, "trained token rows"), (4, "the embedding"))
    ]
    edit_tensors(adapters[1] / WEIGHTS_FILE, lambda key, t: None if ".base_layer." in key else t)
    checkpoint = Checkpoint.open(small, adapters)
    embedding = checkpoint.read("embed_tokens.weight", torch.float32)
    turned = checkpoint.read("embed_tokens.weight", torch.float32, transpose=True)
    torch.testing.assert_close(turned.T, embedding)


def resized(base: Path, rows: int, folder: Path) -> Path:
    """Train an adapter with tokens added to the base: it brings its own embedding."""
    model = transformers.AutoModel.from_pretrained(base)
    model.resize_token_embeddings(rows)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    tuned.save_pretrained(folder, save_embedding_layers=True)
    return trained(folder)


def test_adapter_over_one_that_added_tokens_is_held_to_its_vocabulary(
    small: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    larger = resized(small, ROWS + 2, tmp_path / "larger")
    write_merged(small, larger, tmp_path / "merged")
    over = trained(make_adapter(tmp_path / "merged", target_modules=["embed_tokens"]))
    # peft saves the resized embedding with it, which would make it independent of the first
    edit_tensors(over / WEIGHTS_FILE, lambda key, t: None if ".base_layer." in key else t)
    checkpoint = Checkpoint.open(small, [larger, over])
    require_equal(checkpoint, by_peft(tmp_path / "merged", over))
    message = refusal(ShapeError, lambda: Checkpoint.open(small, [over, larger]))
    assert f"expected {(ROWS, 40)} for embed_tokens.weight, found {(ROWS + 2, 40)}" in message
    assert "the base was resized in training" in message


@pytest.mark.parametrize(("first_headed", "second_headed"), [(False, True), (True, False)])
def test_unmerged_references_run_several_adapters_as_the_merged_weights(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    make_batch: MakeBatch,
    first_headed: bool,
    second_headed: bool,
) -> None:
    base = make_model(headed=True)
    adapters = [
        trained(make_adapter(base, headed=headed, seed=seed, target_modules=targets))
        for headed, seed, targets in (
            (first_headed, 3, ["q_proj", "up_proj", "embed_tokens"]),
            (second_headed, 4, ["q_proj", "down_proj"]),
        )
    ]
    model = transformers.AutoModel.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(by_turns(base, adapters))
    batch = make_batch(5, 9)
    hidden = model(torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask))
    last = hidden.last_hidden_state[torch.arange(2), torch.from_numpy(batch.lengths) - 1]
    expected = torch.nn.functional.normalize(last, dim=-1).detach().numpy()
    for backend in (
        open_reference(base, adapters).backend,
        open_streamed_checkpoint(Checkpoint.open(base, adapters)),
    ):
        # fp32 rounding of three layers, at unit length
        np.testing.assert_allclose(backend.run(batch), expected, atol=1e-5)


def by_turns(base: Path, adapters: list[Path]) -> dict[str, torch.Tensor]:
    """Merge each with peft under its own head, and write what it left for the next."""
    weights: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        folder = Path(shutil.copytree(base, adapter.parent / f"{adapter.name}-merged"))
        if weights:
            model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            model.model.load_state_dict(weights)
            model.save_pretrained(folder)
        weights = by_peft(folder, adapter)
    return weights


# -- what stands beside the weights --


def test_what_the_last_adapter_brings_counts(base: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    for folder, front in ((first, "one: "), (second, "two: ")):
        shutil.copyfile(base / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        (folder / PROMPTS_FILE).write_text(f'{{"prompts": {{"query": "{front}"}}}}')
    adapters = [first, second, third]
    assert find_tokenizer(base, adapters) == second
    assert find_prompts(base, adapters).find("query") == Prompt("two: ")
    assert find_tokenizer(base, [third]) == base and not find_prompts(base, [third]).by_name


def test_commands_take_several_adapters_in_their_order(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {"target_modules": ["v_proj"], "modules_to_save": ["q_proj"]}
    first, second = (
        trained(make_adapter(base, seed=seed, **changes)) for seed, changes in ((3, {}), (4, saved))
    )
    words_of_both = ["--model", base, "--adapter", first, "--adapter", second]
    out, merged = tmp_path / "artifact", tmp_path / "merged"
    for words in (
        ["plan", *words_of_both],
        ["merge", *words_of_both, "--out", merged],
        ["export", *words_of_both, "--out", out, "--max-tokens", 32],
        ["verify", out, *words_of_both],
        ["verify", out, "--model", merged],
    ):
        assert run([str(word) for word in words]) == 0, capsys.readouterr().err
    require_equal(Checkpoint.open(merged), by_peft(base, first, second))
    source = open_artifact(out).manifest.source
    assert source.adapters == [first.name, second.name]
    swapped = ["--model", base, "--adapter", second, "--adapter", first]
    assert run(["verify", *map(str, (out, *swapped))]) == 1
    # what it says of prompts is computed over is what the artifact was made from, in its order
    (tmp_path / "prompts.json").write_text('{"tasks": {"code": {"text": "Code: "}}}')
    add = ["prompts", "add", out, tmp_path / "prompts.json"]
    assert run([*map(str, (*add, *swapped))]) == 2
    assert run([*map(str, (*add, *words_of_both))]) == 0


def test_merge_without_an_adapter_asks_for_one(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", "--model", str(base), "--out", "x"]) == 2
    assert "expected --adapter, found none; see anna-export merge --help" in capsys.readouterr().err


def test_merged_folder_is_pefts_merge_of_several(
    small: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapters = [make_adapter(small, seed=seed) for seed in (3, 4)]
    write_merged(small, adapters, tmp_path / "out")
    assert (tmp_path / "out" / SINGLE_FILE).is_file()
    merged = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    require_equal(Checkpoint.open(small, adapters), merged.state_dict())
