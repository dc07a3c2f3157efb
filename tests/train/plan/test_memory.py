"""The memory forecast against what autograd keeps, and against what a step holds at its peak."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from anna_train.model.forward import Decoder, embed
from anna_train.model.trained_model import lora_config
from anna_train.plan import memory
from anna_train.recipe import (
    BatchRecipe,
    ExamplesRecipe,
    LimitsRecipe,
    LoraRecipe,
    RunRecipe,
    TuneRecipe,
)
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, MistralConfig, MistralModel

from anna_export.errors import SpaceError
from anna_export.spec import FAMILIES, EmbeddingSpec, Head, PoolingMode
from tests.support.families import BOTH_WAYS
from tests.train.plan import memory_worker

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
# dim, ffn_dim, heads, kv_heads, head_dim, rank
WIDTHS = [(64, 160, 4, 2, 24, 8), (96, 336, 6, 6, 16, 4), (128, 448, 8, 2, 16, 64)]
BATCH = 3


def spec_of(widths: tuple[int, ...], layers: int) -> EmbeddingSpec:
    dim, ffn, heads, kv_heads, head_dim, _ = widths
    return EmbeddingSpec(
        97, dim, ffn, layers, heads, kv_heads, head_dim, 1e-5, 10000.0, 32768, None
    )


def recipe_of(
    rank: int = 64,
    *,
    most: int = 0,
    limits: LimitsRecipe | None = None,
    batch: BatchRecipe | None = None,
    quantise: Any = "none",
    **run: Any,
) -> TuneRecipe:
    return TuneRecipe(
        base="base",
        prompts=Path("prompts.json"),
        data=({"path": "rows.jsonl", "task": "query"},),  # type: ignore[arg-type]
        lora=LoraRecipe(rank=rank, quantise=quantise),
        examples=ExamplesRecipe(most=most),
        limits=limits or LimitsRecipe(),
        batch=batch or BatchRecipe(),
        run=RunRecipe(**run),
    )


MISTRAL = EmbeddingSpec(32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 10000.0, 32768, 4096)


def kept_bytes(
    widths: tuple[int, ...], layers: int, tokens: int, prefix: int, recompute: bool, bf16: bool
) -> int:
    """Return what autograd keeps of a forward pass beside weights, a storage once."""
    dim, ffn, heads, kv_heads, head_dim, rank = widths
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        use_cache=False,
        attn_implementation="sdpa",
    )
    base = MistralModel(config).to(torch.bfloat16 if bf16 else torch.float32)
    decoder = Decoder.of(base)
    adapted = get_peft_model(base, lora_config(LoraRecipe(rank=rank)))
    return saved_bytes(decoder, adapted, tokens, prefix, recompute=recompute, bf16=bf16)


def saved_bytes(
    decoder: Decoder,
    adapted: PeftModel,
    tokens: int,
    prefix: int = 0,
    *,
    recompute: bool = False,
    bf16: bool = False,
) -> int:
    """Return what autograd keeps of a forward pass beside weights, a storage once."""
    weights = {weight.untyped_storage().data_ptr() for weight in adapted.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    texts = torch.randint(3, 97, (BATCH, tokens)).tolist()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        vectors = embed(decoder, texts, [5] * prefix, recompute=recompute)
    assert vectors.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


def of_a_layer(widths: tuple[int, ...], *state: Any) -> int:
    return kept_bytes(widths, 4, *state) - kept_bytes(widths, 3, *state)


def decoder_of(
    family: str, both_ways: bool, widths: tuple[int, ...], layers: int
) -> tuple[Decoder, PeftModel]:
    """Return a family's random model whose mean is pooled, and it with an adapter."""
    dim, ffn, heads, kv_heads, head_dim, rank = widths
    changes = BOTH_WAYS[family] if both_ways else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=97,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        pad_token_id=None,
        **changes,
    )
    base = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    decoder = Decoder.of(base)
    decoder = replace(decoder, spec=replace(decoder.spec, head=Head(PoolingMode.MEAN)))
    return decoder, get_peft_model(base, lora_config(LoraRecipe(rank=rank)))


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_of_a_familys_layer_takes_what_autograd_keeps(family: str, both_ways: bool) -> None:
    widths = WIDTHS[2]

    def measure(layers: int, tokens: int) -> int:
        return saved_bytes(*decoder_of(family, both_ways, widths, layers), tokens)

    measured = (measure(4, 50) - measure(3, 50) - measure(4, 20) + measure(3, 20)) / (30 * BATCH)
    recipe = recipe_of(widths[-1], precision="fp32")
    more, less = (
        memory.token_bytes(decoder_of(family, both_ways, widths, layers)[0].spec, recipe)
        for layers in (4, 3)
    )
    assert more - less == pytest.approx(measured, rel=0.01)


def test_nothing_stands_in_front_where_prompts_are_computed_with_every_text() -> None:
    recipe = recipe_of(most=5)
    assert memory.front_bytes(MISTRAL, recipe) > 0
    assert memory.front_bytes(replace(MISTRAL, causal=False), recipe) == 0


def test_a_mean_needs_all_tokens_of_the_last_layer_too() -> None:
    recipe = recipe_of(precision="fp32")
    mean = replace(MISTRAL, head=Head(PoolingMode.MEAN))
    deeper = replace(MISTRAL, layers=33)
    assert memory.token_bytes(mean, recipe) == memory.token_bytes(deeper, recipe)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_token_of_a_layer_takes_what_autograd_keeps(
    widths: tuple[int, ...], precision: str, recompute: bool
) -> None:
    state = (0, recompute, precision == "bf16")
    # the adapter's copies in bf16 are kept once, whatever the number of tokens
    measured = (of_a_layer(widths, 50, *state) - of_a_layer(widths, 20, *state)) / (30 * BATCH)
    recipe = recipe_of(widths[-1], precision=precision, recompute=recompute)
    more, less = (memory.token_bytes(spec_of(widths, layers), recipe) for layers in (4, 3))
    assert more - less == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("widths", WIDTHS)
def test_an_adapter_has_its_copy_in_bf16(widths: tuple[int, ...]) -> None:
    at_20, at_50 = (of_a_layer(widths, tokens, 0, False, True) for tokens in (20, 50))
    copies = at_20 - (at_50 - at_20) * 20 / 30
    in_fp32, in_bf16 = (
        memory.forecast(
            spec_of(widths, 1), recipe_of(widths[-1], precision=precision), CPU, 1
        ).adapter
        for precision in ("fp32", "bf16")
    )
    # rotary tables, equal for all rows, are no part of a layer
    assert in_bf16 - in_fp32 == pytest.approx(copies, rel=0.02)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_keys_and_values_of_a_prefix_are_kept_for_every_query(
    widths: tuple[int, ...], precision: str
) -> None:
    state = (False, precision == "bf16")
    limits = LimitsRecipe(query=20, example_query=30, example_response=30)
    recipe = recipe_of(
        widths[-1],
        most=2,
        limits=limits,
        batch=BatchRecipe(group=BATCH),
        precision=precision,
    )
    measured = of_a_layer(widths, 20, 120, *state) - of_a_layer(widths, 20, 0, *state)
    more, less = (spec_of(widths, layers) for layers in (4, 3))
    token = memory.token_bytes(more, recipe) - memory.token_bytes(less, recipe)
    front = memory.front_bytes(more, recipe) - memory.front_bytes(less, recipe)
    assert 120 * token + front == pytest.approx(measured, rel=0.1)


def test_a_prefix_of_a_large_model_matters() -> None:
    limits = LimitsRecipe(example_query=256, example_response=256)
    saved, recomputed = (
        memory.front_bytes(MISTRAL, recipe_of(most=5, limits=limits, recompute=recompute))
        for recompute in (False, True)
    )
    assert saved > 20e9
    assert 1e9 < recomputed < 3e9
    assert memory.front_bytes(MISTRAL, recipe_of(most=0)) == 0


def test_mistral_in_bf16_is_as_known() -> None:
    recipe = recipe_of(precision="bf16", recompute=True, mini_batch_tokens=4096)
    forecast = memory.forecast(MISTRAL, recipe, torch.device("cuda"), 514)
    assert forecast.weights == pytest.approx(14.2e9, rel=0.01)
    # 168 million weights, at 16 bytes and a copy of 2
    assert forecast.adapter == pytest.approx(167.8e6 * 18, rel=0.001)
    more, less = (
        memory.token_bytes(spec_of((4096, 14336, 32, 8, 128, 64), layers), recipe)
        for layers in (33, 1)
    )
    assert more - less == pytest.approx(0.26e6, rel=0.02)
    assert 18e9 < forecast.total < 24e9


def test_nf4_holds_linear_weights_in_half_a_byte_and_others_in_two() -> None:
    recipe = recipe_of(precision="bf16", quantise="nf4", mini_batch_tokens=1)
    weights = memory.forecast(MISTRAL, recipe, torch.device("cuda"), 514).weights
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    # 64 weights share a scale of 8 bits, and 256 of these share one of 32
    quantised = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    others = (MISTRAL.parameters - linear) * 2
    assert weights == pytest.approx(quantised + others, rel=0.001)
    assert 3.5e9 < weights < 4.5e9


def test_a_mini_batch_is_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, recipe = spec_of(WIDTHS[0], 4), recipe_of(8, precision="fp32")
    fixed = memory.forecast(spec, recipe_of(8, precision="fp32", mini_batch_tokens=1), CPU, 1)
    room = fixed.weights + fixed.adapter + fixed.libraries + 1000 * fixed.token
    # a byte more than the share that is used, against rounding down
    monkeypatch.setattr(memory, "free_bytes", lambda device: room / memory._USED_SHARE + 1)
    assert memory.forecast(spec, recipe, CPU, 514).mini_batch_tokens == 1000
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 50)
    assert memory.forecast(spec, recipe, CPU, 514).mini_batch_tokens == memory._MOST_TOKENS["cpu"]


def test_a_mini_batch_holds_the_longest_text_behind_its_examples() -> None:
    limits = LimitsRecipe(example_query=100, example_response=50)
    recipe = recipe_of(8, most=3, limits=limits, mini_batch_tokens=10)
    forecast = memory.forecast(spec_of(WIDTHS[0], 4), recipe, CPU, 514)
    assert forecast.mini_batch_tokens == 3 * 150 + 514


def test_less_than_one_text_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    least = recipe_of(precision="bf16", recompute=True, mini_batch_tokens=1)
    needed = memory.forecast(MISTRAL, least, CPU, 514).total / memory._USED_SHARE
    recipe = recipe_of(precision="bf16", recompute=True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed + 1)
    assert memory.forecast(MISTRAL, recipe, CPU, 514).mini_batch_tokens == 514
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1e6)
    with pytest.raises(SpaceError, match=r"expected 2\d\.\d GB free .* 514 tokens.*; .*nf4"):
        memory.forecast(MISTRAL, recipe, CPU, 514)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a base, rows that fill all limits, and prompts are."""
    root = tmp_path_factory.mktemp("memory")
    memory_worker.write_base(root / "base")
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefgh", k=4)) for _ in range(200)]

    def text(count: int) -> str:
        return " ".join(drawn.choices(words, k=count))

    rows = [
        {"query": text(60), "pos": [text(100)], "neg": [text(100), text(100)]} for _ in range(64)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"query": {"format": "e5", "instruction": "Find the words"}}
    (root / "prompts.json").write_text(json.dumps({"default": "query", "tasks": tasks}))
    return root


# with examples, documents are few, so that a mini-batch of queries is the largest
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "recompute", "examples"), [("fp32", True, 4), ("bf16", False, 0)]
)
def test_a_step_holds_what_was_forecast(
    precision: str, recompute: bool, examples: int, folder: Path
) -> None:
    recipe = {
        "base": "base",
        "prompts": "prompts.json",
        "data": [{"path": "rows.jsonl", "task": "query"}],
        "steps": 1,
        "batch": {"queries": 16, "negatives": 0 if examples else 2, "group": 16},
        "limits": {"query": 16, "document": 64, "example_query": 50, "example_response": 50},
        "examples": {"least": examples, "most": examples},
        "loss": {"soft_labels": 0},
        "lora": {"rank": 16, "alpha": 16},
        "run": {
            "precision": precision,
            "recompute": recompute,
            "mini_batch_tokens": 750 if examples else 2048,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    environment = os.environ | {
        # what is freed goes back, so that what is resident is what tensors take
        "MALLOC_MMAP_THRESHOLD_": "65536",
        # oneDNN keeps weights in an order of its own of the last shapes it saw
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    }
    command = [sys.executable, "-m", "tests.train.plan.memory_worker", str(path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    measured = json.loads(ran.stdout)
    assert measured["forecast"] == pytest.approx(measured["peak"], rel=0.2), measured
