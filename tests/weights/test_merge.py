"""The merged folder is one that transformers and sentence-transformers load, or there is none."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from anna_export.cli import run
from anna_export.errors import DamagedError, ExistsError, InputError
from anna_export.spec import read_spec
from anna_export.text.framing import TOKENIZER_FILE, read_framing
from anna_export.text.limit import LIMIT_FILE
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import PROMPTS_FILE, Prompts, read_prompts
from anna_export.text.st_files import MODULES_FILE
from anna_export.text.tokenizer_files import framed_json
from anna_export.weights import merge
from anna_export.weights.adapter import WEIGHTS_FILE
from anna_export.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from anna_export.weights.merge import write_merged
from tests.support.folders import edit_json
from tests.support.st_folders import dense, save_st
from tests.support.types import MakeAdapter, MakeModel
from tests.weights.conftest import ROWS

pytestmark = pytest.mark.filterwarnings("ignore:::peft")

IDS = torch.arange(3, 60)[None]
TEXTS = ["a transfer", "", "漢字とかな " * 5]


@pytest.fixture(scope="module")
def lora(small: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(small)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a folder of sentence-transformers, with prompts and two more modules."""
    folder = tmp_path_factory.mktemp("st") / "base"
    transformer = Transformer(str(base))
    transformer.max_seq_length = 21
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(
        modules=[transformer, pooling, Normalize()],
        prompts={"query": "find: ", "document": ""},
        device="cpu",
    )
    model.save(str(folder))
    return folder


def by_peft(base: Path, *adapters: Path, headed: bool = False) -> transformers.PreTrainedModel:
    kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
    model = kind.from_pretrained(base, dtype=torch.float32)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.model if headed else model


def require_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(weights) == set(expected)
    for name, weight in expected.items():
        # one product and one sum of numbers below 1 in fp32, in another order
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-6, msg=name)


# -- what is written --


def test_merged_folder_is_pefts_merge(small: Path, lora: Path, tmp_path: Path) -> None:
    merged = write_merged(small, lora, tmp_path / "out")
    model, loading = transformers.AutoModel.from_pretrained(merged.folder, output_loading_info=True)
    assert not (loading["missing_keys"] or loading["unexpected_keys"])
    expected = by_peft(small, lora)
    require_equal(model.state_dict(), expected.state_dict())
    assert (merged.tensors, merged.changed) == (len(model.state_dict()), 21)
    assert merged.size_bytes == 4 * model.num_parameters()
    got, wanted = model(IDS).last_hidden_state, expected(IDS).last_hidden_state
    # fp32 rounding of three layers
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_two_adapters_merged_one_after_the_other_are_pefts_merge_of_both(
    small: Path, lora: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    second = make_adapter(small, seed=9, use_rslora=True, modules_to_save=["norm"])
    write_merged(small, lora, tmp_path / "first")
    write_merged(tmp_path / "first", second, tmp_path / "both")
    weights = load_file(tmp_path / "both" / SINGLE_FILE)
    require_equal(weights, by_peft(small, lora, second).state_dict())


def test_each_weight_keeps_the_bases_own_type(
    make_model: MakeModel, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_model(vocab_size=ROWS, dtype=torch.bfloat16)
    stored = load_file(base / SINGLE_FILE)
    stored |= {name: weight.float() for name, weight in stored.items() if "norm" in name}
    save_file(stored, base / SINGLE_FILE)
    # the adapter's own embedding is fp32
    adapter = make_adapter(base, modules_to_save=["embed_tokens"])
    write_merged(base, adapter, tmp_path / "out")
    weights = load_file(tmp_path / "out" / SINGLE_FILE)
    assert {n: w.dtype for n, w in weights.items()} == {n: w.dtype for n, w in stored.items()}


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 60_000])
def test_shards_are_what_their_index_says(
    small: Path, lora: Path, tmp_path: Path, shard_bytes: int
) -> None:
    merged = write_merged(small, lora, tmp_path / "out", shard_bytes=shard_bytes)
    index = json.loads((merged.folder / INDEX_FILE).read_text())
    files = {path.name for path in merged.folder.glob("*.safetensors")}
    assert len(files) > 1 and files == set(index["weight_map"].values())
    for file in files:
        weights = load_file(merged.folder / file)
        assert set(weights) == {n for n, shard in index["weight_map"].items() if shard == file}
        size = sum(weight.nbytes for weight in weights.values())
        assert size <= shard_bytes or len(weights) == 1
    assert index["metadata"]["total_size"] == merged.size_bytes
    model = transformers.AutoModel.from_pretrained(merged.folder)
    require_equal(model.state_dict(), by_peft(small, lora).state_dict())


def test_progress_rises_to_the_total_over_all_shards(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    reports: list[tuple[int, int]] = []
    merged = write_merged(
        small,
        lora,
        tmp_path / "out",
        shard_bytes=5_000,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert reports == sorted(reports) and reports[0][0] >= 0
    assert reports[-1] == (merged.size_bytes, merged.size_bytes)


def test_config_keeps_all_but_what_the_merge_changes(
    make_model: MakeModel, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_model(vocab_size=ROWS, headed=True)
    path = base / "config.json"
    config = json.loads(path.read_text()) | {"of_ours": {"kept": [1, 2]}}
    path.write_text(json.dumps(config))
    write_merged(base, make_adapter(base, headed=True), tmp_path / "out")
    merged = json.loads((tmp_path / "out" / "config.json").read_text())
    assert merged == config | {"architectures": ["MistralModel"]}


def test_merged_folder_opens_without_a_left_over_setting_of_quantization(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(small, tmp_path / "base"))
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(base / "config.json", lambda config: config.update(quantization_config=bits))
    write_merged(base, lora, tmp_path / "out")
    merged = transformers.AutoModel.from_pretrained(tmp_path / "out")
    require_equal(merged.state_dict(), by_peft(small, lora).state_dict())


def test_language_head_is_left_out_and_the_rest_is_pefts_merge(
    make_model: MakeModel, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_model(vocab_size=ROWS, headed=True)
    adapter = make_adapter(base, headed=True, modules_to_save=["lm_head"])
    write_merged(base, adapter, tmp_path / "out")
    weights = load_file(tmp_path / "out" / SINGLE_FILE)
    require_equal(weights, by_peft(base, adapter, headed=True).state_dict())


def test_added_tokens_enlarge_the_vocabulary(small: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(small)
    model.resize_token_embeddings(ROWS + 2)
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    write_merged(small, tmp_path / "lora", tmp_path / "out")
    merged = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert merged.get_input_embeddings().weight.equal(model.get_input_embeddings().weight)


def test_adapters_tokenizer_wins_where_it_brings_one(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    tuned = Path(shutil.copytree(lora, tmp_path / "lora"))
    shutil.copyfile(small / TOKENIZER_FILE, tuned / TOKENIZER_FILE)
    with (tuned / TOKENIZER_FILE).open("a") as file:
        file.write("\n")
    write_merged(small, tuned, tmp_path / "own")
    write_merged(small, lora, tmp_path / "base's")
    read = Path.read_bytes
    assert read(tmp_path / "own" / TOKENIZER_FILE) == read(tuned / TOKENIZER_FILE)
    assert read(tmp_path / "base's" / TOKENIZER_FILE) == read(small / TOKENIZER_FILE)


def test_cut_and_padding_of_training_are_not_merged_and_framing_is(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    tuned = Path(shutil.copytree(lora, tmp_path / "lora"))
    trained = tokenizers.Tokenizer.from_file(str(small / TOKENIZER_FILE))
    trained.enable_truncation(5)
    trained.enable_padding(length=5)
    trained.save(str(tuned / TOKENIZER_FILE))
    write_merged(small, tuned, tmp_path / "out")
    merged, before = (
        tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        for folder in (tmp_path / "out", small)
    )
    assert merged.truncation is None and merged.padding is None
    text = "longer than those five tokens are"
    assert merged.encode(text).ids == before.encode(text).ids


# -- sentence-transformers --


def test_folder_of_sentence_transformers_stays_one(
    trained: Path, adapter: Path, tmp_path: Path
) -> None:
    write_merged(trained, adapter, tmp_path / "out")
    merged = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = SentenceTransformer(str(trained), device="cpu")
    before = expected.encode(TEXTS, prompt_name="query")
    expected[0].model = by_peft(trained, adapter).eval()
    got, wanted = (model.encode(TEXTS, prompt_name="query") for model in (merged, expected))
    # fp32 rounding of three layers, at unit length
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.abs(got - before).max() > 1e-2
    assert merged.max_seq_length == 21


def test_modules_come_from_the_folder_that_lists_them(
    base: Path, adapter: Path, trained: Path, tmp_path: Path
) -> None:
    # an adapter that sentence-transformers trained over a plain base lists and brings them
    tuned = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copyfile(trained / "modules.json", tuned / "modules.json")
    for module in trained.glob("[0-9]_*"):
        shutil.copytree(module, tuned / module.name)
    write_merged(base, tuned, tmp_path / "out")
    merged = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in merged] == [Transformer, Pooling, Normalize]


def test_merged_plain_model_opens_as_last_token_of_unit_length(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    write_merged(small, lora, tmp_path / "out")
    merged = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in merged] == [Transformer, Pooling, Normalize]
    assert merged[1].pooling_mode == "lasttoken"


def test_dense_modules_weights_stay_in_their_own_folder(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    model = save_st(small, tmp_path / "st", "mean", layers=[dense(40, 24)])
    merged = write_merged(model, lora, tmp_path / "out")
    expected = by_peft(small, lora).state_dict()
    require_equal(load_file(merged.folder / SINGLE_FILE), expected)
    weights = load_file(merged.folder / "2_Dense" / SINGLE_FILE)
    require_equal(weights, load_file(model / "2_Dense" / SINGLE_FILE))


def test_module_is_copied_from_the_path_that_the_list_names(
    trained: Path, adapter: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(trained, tmp_path / "base"))
    modules = json.loads((model / MODULES_FILE).read_text())
    (model / modules[1]["path"]).rename(model / "pooling")
    modules[1]["path"] = "pooling"
    (model / MODULES_FILE).write_text(json.dumps(modules))
    write_merged(model, adapter, tmp_path / "out")
    merged = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module) for module in merged] == [Transformer, Pooling, Normalize]


@pytest.mark.parametrize("limit", [None, 17], ids=["model's", "adapter's"])
def test_longest_text_is_the_one_that_an_export_would_take(
    base: Path, adapter: Path, tmp_path: Path, limit: int | None
) -> None:
    model = Path(shutil.copytree(base, tmp_path / "base"))
    tuned = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copyfile(base / TOKENIZER_FILE, tuned / TOKENIZER_FILE)
    shutil.copyfile(base / "tokenizer_config.json", tuned / "tokenizer_config.json")
    (model / LIMIT_FILE).write_text(json.dumps({"max_seq_length": 19}))
    if limit is not None:
        (tuned / LIMIT_FILE).write_text(json.dumps({"max_seq_length": limit}))
    write_merged(model, tuned, tmp_path / "out")
    spec = read_spec(model)
    exported = read_framing(model, spec, None, adapter=tuned)
    assert read_framing(tmp_path / "out", spec, None) == exported
    assert exported.max_tokens == (limit or 19)


@pytest.mark.parametrize("tuned", [{}, {"query": "new: "}], ids=["none", "some"])
def test_prompts_are_those_that_an_export_would_take(
    trained: Path, adapter: Path, tmp_path: Path, tuned: dict[str, str]
) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    (lora / PROMPTS_FILE).write_text(json.dumps({"prompts": tuned}))
    write_merged(trained, lora, tmp_path / "out")
    prompts = read_prompts(tmp_path / "out")
    assert prompts == find_prompts(trained, lora) != Prompts()


# -- what is refused, and what is left behind --


def test_existing_output_is_refused_and_kept(small: Path, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExistsError, match="`overwrite` replaces it"):
        write_merged(small, lora, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_existing_output_is_replaced_when_asked(small: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_merged(small, lora, out, shard_bytes=1)
    write_merged(small, lora, out, overwrite=True)
    assert [path.name for path in out.glob("*.safetensors*")] == [SINGLE_FILE]
    assert list(tmp_path.iterdir()) == [out]


def test_folder_that_is_no_model_is_not_replaced(small: Path, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExistsError, match="found none in"):
        write_merged(small, lora, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("source", ["model", "adapter"])
@pytest.mark.parametrize("below", [".", "..", "inside/.."], ids=lambda below: f"out={below}")
def test_output_that_is_or_holds_a_source_is_refused(
    small: Path, lora: Path, tmp_path: Path, source: str, below: str
) -> None:
    root = tmp_path / "root"
    model = Path(shutil.copytree(small, root / "models" / "model"))
    adapter = Path(shutil.copytree(lora, root / "loras" / "adapter"))
    before = sorted(root.rglob("*"))
    out = (model if source == "model" else adapter) / below
    with pytest.raises(InputError, match="which holds it"):
        write_merged(model, adapter, out, overwrite=True)
    assert sorted(root.rglob("*")) == before


def test_output_that_is_a_link_to_the_base_is_refused(
    small: Path, lora: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(small)
    with pytest.raises(InputError, match="which holds it"):
        write_merged(small, lora, tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("path", ["../outside", "/", "sub/../../outside", "link", None, 3], ids=str)
def test_module_outside_the_folder_is_refused(
    small: Path, lora: Path, tmp_path: Path, path: object
) -> None:
    model = Path(shutil.copytree(small, tmp_path / "base"))
    (tmp_path / "outside").mkdir()
    (model / "sub").mkdir()
    (model / "link").symlink_to(tmp_path / "outside")
    (model / MODULES_FILE).write_text(
        json.dumps([{"type": "a", "path": ""}, {"type": "b", "path": path}])
    )
    with pytest.raises(DamagedError, match=r"expected folders inside .*base as path of each"):
        write_merged(model, lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_interruption_leaves_nothing(small: Path, lora: Path, tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_merged(small, lora, tmp_path / "new" / "out", progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_what_was_to_be_replaced(
    small: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = write_merged(small, lora, tmp_path / "out").folder
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(merge, "_copy_configuration", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_merged(small, lora, out, overwrite=True, shard_bytes=1)
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_adapter_that_is_not_finite_leaves_nothing(small: Path, lora: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(lora, tmp_path / "lora"))
    tensors = load_file(spoilt / WEIGHTS_FILE)
    key = "base_model.model.layers.2.mlp.up_proj.lora_B.weight"
    tensors[key][3, 1] = float("inf")
    save_file(tensors, spoilt / WEIGHTS_FILE)
    with pytest.raises(DamagedError, match=r"finite numbers in layers\.2\.mlp\.up_proj\.weight"):
        write_merged(small, spoilt, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [spoilt]


# -- the end token, which no module of a plain base says anything of --


@pytest.fixture
def endless(base: Path, tmp_path: Path) -> Path:
    """A plain base whose tokenizer puts `<s>` in front of a text and nothing behind."""
    folder = Path(shutil.copytree(base, tmp_path / "endless"))
    path = folder / TOKENIZER_FILE
    path.write_text(framed_json(path, [1], []))
    edit_json(folder / "tokenizer_config.json", lambda settings: settings.pop("add_eos_token"))
    return folder


def test_merging_a_plain_base_asks_whether_an_end_token_follows(
    endless: Path, adapter: Path, tmp_path: Path
) -> None:
    # the merged folder lists modules, and with them nothing asks again
    with pytest.raises(InputError, match="give `eos`: yes if training put it there"):
        write_merged(endless, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("eos", [True, False])
def test_merged_tokenizer_puts_the_end_token_that_was_chosen(
    endless: Path, adapter: Path, tmp_path: Path, eos: bool
) -> None:
    options = ["--eos" if eos else "--no-eos", "--out", str(tmp_path / "out")]
    assert run(["merge", "--model", str(endless), "--adapter", str(adapter), *options]) == 0
    plain = transformers.AutoTokenizer.from_pretrained(endless)("a transfer")["input_ids"]
    merged = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert merged("a transfer")["input_ids"] == [*plain, *([merged.eos_token_id] if eos else [])]
    framing = read_framing(tmp_path / "out", read_spec(endless), None)
    assert framing == read_framing(endless, read_spec(endless), None, adapter=adapter, eos=eos)
