"""The merged weights are those of peft, summed in fp32 and rounded once."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from anna_export.console.output import stage
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.weights.adapter import WEIGHTS_FILE, Delta
from anna_export.weights.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from anna_export.weights.merge import write_merged
from tests.support.folders import edit_tensors
from tests.support.types import MakeAdapter, MakeModel
from tests.weights.conftest import ROWS

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

Q = "layers.1.self_attn.q_proj.weight"
EMBEDDING = "embed_tokens.weight"

ADAPTERS: dict[str, dict[str, Any]] = {
    "all seven linear layers": {},
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*\.1\.mlp\.(up|down)_proj"},
    "all but one": {"exclude_modules": ["o_proj"]},
    "rsLoRA": {"use_rslora": True, "r": 3},
    "patterns": {
        "rank_pattern": {"q_proj": 7, r"layers\.[02]\.mlp\..*": 3},
        "alpha_pattern": {"q_proj": 5, "v_proj": 3, r"layers\.\d\.mlp\.up_proj": 11},
    },
    "rsLoRA with patterns": {
        "use_rslora": True,
        "rank_pattern": {"k_proj": 5},
        "alpha_pattern": {"k_proj": 3},
    },
    "saved modules": {"modules_to_save": ["embed_tokens", "norm"]},
    "a saved linear layer": {"target_modules": ["q_proj"], "modules_to_save": ["k_proj"]},
    "the embedding": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "trained token rows": {"trainable_token_indices": [ROWS - 1, 3]},
    "trained token rows by module": {"trainable_token_indices": {"embed_tokens": [5, 2]}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "MiCA": {"init_lora_weights": "mica", "target_modules": r".*\.0\..*q_proj"},
}


@pytest.fixture(scope="module")
def headed(make_model: MakeModel) -> Path:
    return make_model(vocab_size=ROWS, headed=True)


@pytest.fixture(scope="module")
def lora(small: Path, make_adapter: MakeAdapter) -> Path:
    return trained(make_adapter(small))


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of the base, to damage."""
    return Path(shutil.copytree(small, tmp_path / "base"))


def trained(adapter: Path) -> Path:
    """Move all that is trained, also what the adapter's making left as the base has it."""

    def move(key: str, tensor: torch.Tensor) -> torch.Tensor:
        # one number for all, so that tensors that are tied, even turned, stay equal
        return tensor if ".base_layer." in key else tensor + 0.07

    edit_tensors(adapter / WEIGHTS_FILE, move)
    return adapter


def by_peft(base: Path, *adapters: Path, rows: int | None = None) -> dict[str, torch.Tensor]:
    """Merge in fp32 with peft, one after the other, under the head they were trained under."""
    headed = any(".model.model." in key for key in load_file(adapters[0] / WEIGHTS_FILE))
    kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
    model = kind.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    weights: dict[str, torch.Tensor] = (model.model if headed else model).state_dict()
    return weights


def require_equal(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.spec.weight_shapes()) == set(expected)
    for name, weight in expected.items():
        # one product and one sum of numbers below 1 in fp32, in another order
        torch.testing.assert_close(
            checkpoint.read(name, torch.float32), weight, atol=1e-6, rtol=1e-6, msg=name
        )
    rows = torch.tensor([2, 3, 4, 5, ROWS - 1, 3, 0])
    some = checkpoint.read(EMBEDDING, torch.float32, rows=rows)
    torch.testing.assert_close(some, expected[EMBEDDING][rows], atol=1e-6, rtol=1e-6)


def deltas(checkpoint: Checkpoint) -> Mapping[str, Delta]:
    (adapter,) = checkpoint.adapters
    return adapter.deltas


# -- peft is the oracle --


@pytest.mark.parametrize("under_head", [False, True], ids=["plain", "under a head"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_weights_are_those_of_peft(
    small: Path, headed: Path, make_adapter: MakeAdapter, kind: str, under_head: bool
) -> None:
    base = headed if under_head else small
    adapter = trained(make_adapter(base, headed=under_head, **ADAPTERS[kind]))
    expected = by_peft(base, adapter)
    require_equal(Checkpoint.open(base, adapter), expected)


@pytest.mark.parametrize("kind", ["all but one", "saved modules", "trained token rows"])
def test_adapter_counts_the_weights_it_changes(
    small: Path, make_adapter: MakeAdapter, kind: str
) -> None:
    adapter = trained(make_adapter(small, **ADAPTERS[kind]))
    base, tuned = Checkpoint.open(small), Checkpoint.open(small, adapter)
    changed = [
        name
        for name in base.spec.weight_shapes()
        if not base.read(name, torch.float32).equal(tuned.read(name, torch.float32))
    ]
    (only,) = tuned.adapters
    assert only.changed() == set(changed)


def test_adapter_of_two_layers_changes_no_other(headed: Path, make_adapter: MakeAdapter) -> None:
    adapter = trained(make_adapter(headed, headed=True, layers_to_transform=[0, 2]))
    checkpoint = Checkpoint.open(headed, adapter)
    require_equal(checkpoint, by_peft(headed, adapter))
    assert not [name for name in deltas(checkpoint) if name.startswith("layers.1.")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_any_stored_type_merges_as_in_peft(
    make_model: MakeModel, make_adapter: MakeAdapter, dtype: torch.dtype, stored: torch.dtype
) -> None:
    base = make_model(vocab_size=ROWS, dtype=dtype)
    adapter = trained(make_adapter(base))
    edit_tensors(adapter / WEIGHTS_FILE, lambda _, tensor: tensor.to(stored))
    require_equal(Checkpoint.open(base, adapter), by_peft(base, adapter))


@pytest.mark.parametrize("under_head", [False, True], ids=["plain", "under a head"])
def test_adapter_fits_a_base_with_and_without_a_head(
    small: Path, headed: Path, make_adapter: MakeAdapter, under_head: bool
) -> None:
    trained_on, other = (headed, small) if under_head else (small, headed)
    adapter = trained(make_adapter(trained_on, headed=under_head))
    require_equal(Checkpoint.open(other, adapter), by_peft(other, adapter))


@pytest.mark.parametrize(
    "changes",
    [{}, {"trainable_token_indices": [3, ROWS + 1]}, {"target_modules": ["embed_tokens"]}],
    ids=str,
)
@pytest.mark.parametrize("under_head", [False, True], ids=["plain", "under a head"])
def test_added_tokens_enlarge_the_embedding(
    small: Path,
    headed: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    under_head: bool,
) -> None:
    base = headed if under_head else small
    kind = transformers.AutoModelForCausalLM if under_head else transformers.AutoModel
    model = kind.from_pretrained(base)
    model.resize_token_embeddings(ROWS + 3)
    config = peft.LoraConfig(**{"target_modules": ["q_proj"], **changes})
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(base, trained(tmp_path))
    assert checkpoint.spec.vocab_size == ROWS + 3
    require_equal(checkpoint, by_peft(base, tmp_path, rows=ROWS + 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [3, 5]},
    ],
    ids=str,
)
def test_what_an_adapter_does_to_a_tied_language_head_leaves_the_embedding_alone(
    make_model: MakeModel, make_adapter: MakeAdapter, changes: dict[str, Any]
) -> None:
    base = make_model(vocab_size=ROWS, headed=True, tie_word_embeddings=True)
    adapter = trained(make_adapter(base, headed=True, **changes))
    ids = torch.arange(ROWS)[None]
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    # peft's merge of a tied head changes the embedding too; what was trained did not
    unmerged = peft.PeftModel.from_pretrained(model, adapter).get_base_model()
    expected = unmerged.get_input_embeddings()(ids)[0].detach()
    got = Checkpoint.open(base, adapter).read(EMBEDDING, torch.float32)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_first_pattern_that_matches_wins_as_in_peft(small: Path, make_adapter: MakeAdapter) -> None:
    patterns = {r"layers\.1\..*": 3, "q_proj": 5, "proj": 9, r"self_attn\.q_proj": 7}
    adapter = trained(make_adapter(small, alpha_pattern=patterns, r=2))
    changes = deltas(Checkpoint.open(small, adapter))
    assert changes["layers.1.self_attn.q_proj.weight"].scale == 3 / 2
    assert changes["layers.0.self_attn.q_proj.weight"].scale == 5 / 2
    assert changes["layers.0.mlp.up_proj.weight"].scale == 8 / 2  # "proj" is no whole name
    require_equal(Checkpoint.open(small, adapter), by_peft(small, adapter))


@pytest.mark.parametrize("under_head", [False, True], ids=["plain", "under a head"])
@pytest.mark.parametrize("pattern", [r"^layers\..*q_proj", r"^model\.layers\..*q_proj"])
def test_pattern_speaks_of_the_name_in_training_as_in_peft(
    small: Path, headed: Path, make_adapter: MakeAdapter, under_head: bool, pattern: str
) -> None:
    base = headed if under_head else small
    adapter = trained(make_adapter(base, headed=under_head, alpha_pattern={pattern: 31}))
    require_equal(Checkpoint.open(base, adapter), by_peft(base, adapter))


# -- one sum in fp32, one rounding --


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
def test_merged_weight_is_the_fp32_sum_rounded_once(
    make_model: MakeModel, make_adapter: MakeAdapter, dtype: torch.dtype, transpose: bool
) -> None:
    base = make_model(vocab_size=ROWS, dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(base, trained(make_adapter(base)))
    exact = checkpoint.read(Q, torch.float32, transpose=transpose)
    assert checkpoint.read(Q, dtype, transpose=transpose).equal(exact.to(dtype))


def test_bf16_rounds_to_nearest_even(small: Path, lora: Path) -> None:
    exact = Checkpoint.open(small, lora).read(Q, torch.float32)
    bits = exact.view(torch.int32).to(torch.int64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    got = Checkpoint.open(small, lora).read(Q, torch.bfloat16)
    assert (
        got.view(torch.int16)
        .to(torch.int64)
        .equal((nearest & 0xFFFF) - ((nearest >> 15 & 1) << 16))
    )


# -- reading --


@pytest.mark.parametrize("name", [Q, "layers.0.mlp.down_proj.weight", EMBEDDING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transposed_read_is_the_plain_one_turned(
    small: Path, make_adapter: MakeAdapter, name: str, dtype: torch.dtype
) -> None:
    adapter = trained(make_adapter(small, trainable_token_indices=[4, 7]))
    checkpoint = Checkpoint.open(small, adapter)
    turned = checkpoint.read(name, dtype, transpose=True)
    assert turned.is_contiguous()
    # fp32 products of turned factors are summed in another order, which bf16 may round apart
    atol = 1e-6 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(turned, checkpoint.read(name, dtype).T, atol=atol, rtol=0)


def test_weight_of_many_blocks_merges_as_one_of_few(
    small: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(small, lora)
    expected = checkpoint.read(Q, torch.float32)
    monkeypatch.setattr("anna_export.weights.checkpoint._CHUNK_NUMBERS", 7 * 40 + 1)
    torch.testing.assert_close(checkpoint.read(Q, torch.float32), expected, atol=1e-7, rtol=0)


def test_embedding_that_is_written_in_blocks_is_the_one_that_is_written_at_once(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(make_adapter(base, target_modules=["embed_tokens", "q_proj"]))
    for name, block_bytes in (("at once", 1 << 30), ("blocks", 40 * 4 * 7000)):
        monkeypatch.setattr("anna_export.weights.checkpoint._BLOCK_BYTES", block_bytes)
        write_merged(base, adapter, tmp_path / name / "merged")
        recipe = Recipe(base, adapter, tmp_path / name / "artifact", verify=False, max_tokens=64)
        export(recipe, stage)
    for file in ("merged/model.safetensors", "artifact/model.onnx.data", "artifact/model.onnx"):
        first, other = ((tmp_path / name / file).read_bytes() for name in ("at once", "blocks"))
        assert first == other, file


def test_unmerged_read_is_the_base(small: Path, lora: Path) -> None:
    checkpoint, base = Checkpoint.open(small, lora), Checkpoint.open(small)
    for name in checkpoint.spec.weight_shapes():
        got = checkpoint.read(name, torch.float32, merge=False)
        assert got.equal(base.read(name, torch.float32)), name


def test_sharded_base_is_the_whole_one(make_model: MakeModel, small: Path) -> None:
    sharded = make_model(vocab_size=ROWS, shard="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    single, shards = Checkpoint.open(small), Checkpoint.open(sharded)
    for name in single.spec.weight_shapes():
        assert single.read(name, torch.float32).equal(shards.read(name, torch.float32)), name


def test_language_head_and_rotary_tables_are_left_out(copy: Path) -> None:
    path = copy / SINGLE_FILE
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["lm_head.weight"] = torch.ones(ROWS, 40)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path)
    checkpoint = Checkpoint.open(copy)
    assert set(checkpoint.base) == set(checkpoint.spec.weight_shapes())


def test_whole_file_is_read_rather_than_a_stale_index_as_in_transformers(copy: Path) -> None:
    (copy / INDEX_FILE).write_text(json.dumps({"weight_map": {"norm.weight": "gone.safetensors"}}))
    stored = load_file(copy / SINGLE_FILE)["norm.weight"]
    assert Checkpoint.open(copy).read("norm.weight", torch.float32).equal(stored)
