"""The numbers of a model, as transformers reads them, and the configurations that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from anna_export.errors import DamagedError, InputError, MissingError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.spec import EmbeddingSpec, read_spec
from anna_export.text.prompt_file import find_prompts
from anna_export.text.prompts import NO_PROMPT, PROMPTS_FILE, Prompt, Prompts, read_prompts
from tests.support.refusals import refusal

Configure = Callable[..., Path]
ABSENT = "(absent)"


@pytest.fixture
def configured(base: Path, tmp_path: Path) -> Configure:
    """Writes a model folder with the base's config.json, changed; ABSENT removes."""

    def write(**changes: Any) -> Path:
        config = json.loads((base / "config.json").read_text()) | changes
        stated = {key: value for key, value in config.items() if value is not ABSENT}
        (tmp_path / "config.json").write_text(json.dumps(stated))
        return tmp_path

    return write


# -- the model's numbers --


def test_weight_shapes_are_those_of_transformers(base: Path) -> None:
    model = transformers.AutoModel.from_pretrained(base)
    spec = read_spec(base)
    assert spec.weight_shapes() == {n: tuple(w.shape) for n, w in model.state_dict().items()}
    assert spec.parameters == model.num_parameters()


def test_spec_says_what_the_config_says(configured: Configure) -> None:
    spec = read_spec(configured(rms_norm_eps=3e-6, rope_parameters={"rope_theta": 12345.0}))
    assert spec == EmbeddingSpec(
        vocab_size=32000,
        dim=40,
        ffn_dim=72,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=16,
        norm_eps=3e-6,
        rope_theta=12345.0,
        max_positions=8192,
        sliding_window=4096,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_key_value_heads", ABSENT), ("num_key_value_heads", 2)),
        *(("head_dim", ABSENT), ("head_dim", None), ("head_dim", 2)),
        *(("sliding_window", ABSENT), ("sliding_window", None), ("sliding_window", 2)),
    ],
    ids=lambda value: "absent" if value is ABSENT else str(value),
)
def test_absent_or_null_means_what_it_means_to_transformers(
    configured: Configure, key: str, value: object
) -> None:
    folder = configured(**{"num_attention_heads": 8, "hidden_size": 48, key: value})
    theirs, ours = transformers.AutoConfig.from_pretrained(folder), read_spec(folder)
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.sliding_window == theirs.sliding_window


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 77777.0, "rope_type": "default"}},
        {"rope_parameters": ABSENT, "rope_theta": 77777.0},
        {"rope_parameters": ABSENT, "rope_scaling": None, "rope_theta": 77777},
        {"rope_scaling": {"rope_theta": 77777.0, "rope_type": "default"}},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 77777.0},
    ],
    ids=["transformers 5", "before it", "before it, with a null", "both", "all three"],
)
def test_rope_theta_is_read_from_old_and_new_configs(
    configured: Configure, changes: dict[str, Any]
) -> None:
    folder = configured(**changes)
    theirs = transformers.AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"]
    assert read_spec(folder).rope_theta == theirs == 77777


@pytest.mark.parametrize(
    ("types", "window"),
    [
        (["full_attention"] * 3, None),
        (["sliding_attention"] * 3, 4096),
        (None, 4096),
    ],
    ids=["full", "sliding", "null"],
)
def test_layer_types_say_whether_there_is_a_window_as_in_transformers(
    configured: Configure, types: list[str] | None, window: int | None
) -> None:
    folder = configured(layer_types=types)
    layers = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert {layer.self_attn.sliding_window for layer in layers.layers} == {window}
    assert read_spec(folder).sliding_window == window


def test_every_linear_module_has_one_input_and_a_weight(base: Path) -> None:
    spec = read_spec(base)
    modules, shapes = spec.linear_modules(), spec.weight_shapes()
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    assert {f"{module}.weight" for module in modules} == matrices - {"embed_tokens.weight"}
    for name in set(modules.values()):
        widths = {shapes[f"{module}.weight"][1] for module in modules if modules[module] == name}
        assert len(widths) == 1, name


# -- configurations that are refused --


def test_missing_folder_is_named(tmp_path: Path) -> None:
    message = refusal(MissingError, lambda: read_spec(tmp_path / "gone"))
    assert "found none at" in message and "gone" in message


def test_missing_config_is_named(tmp_path: Path) -> None:
    assert "config.json" in refusal(MissingError, lambda: read_spec(tmp_path))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000])
def test_file_that_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    assert "expected JSON in" in refusal(DamagedError, lambda: read_json(tmp_path / "config.json"))


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert f"found a {kind}" in refusal(DamagedError, lambda: read_spec(tmp_path))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        *((key, key) for key in ("vocab_size", "hidden_size", "intermediate_size")),
        *((key, key) for key in ("num_hidden_layers", "num_attention_heads", "rms_norm_eps")),
        *(
            ("max_position_embeddings", "max_position_embeddings"),
            ("rope_parameters", "rope_theta"),
        ),
    ],
)
def test_missing_key_is_named(configured: Configure, key: str, named: str) -> None:
    message = refusal(InputError, lambda: read_spec(configured(**{key: ABSENT})))
    assert f"expected the key '{named}' in" in message


@pytest.mark.parametrize("value", ["40", [40], True, float("inf"), float("nan"), 40.0], ids=repr)
@pytest.mark.parametrize("key", ["hidden_size", "num_key_value_heads", "sliding_window"])
def test_what_is_no_whole_number_is_refused(configured: Configure, key: str, value: object) -> None:
    message = refusal(InputError, lambda: read_spec(configured(**{key: value})))
    assert f"found {value!r} as {key}" in message


@pytest.mark.parametrize("value", ["1e-5", None, [], 10**400], ids=lambda value: repr(value)[:9])
def test_eps_that_is_no_number_is_refused(configured: Configure, value: object) -> None:
    message = refusal(InputError, lambda: read_spec(configured(rms_norm_eps=value)))
    assert "expected numbers in" in message


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("num_attention_heads", "heads"),
        ("num_key_value_heads", "kv_heads"),
        ("num_hidden_layers", "layers"),
        ("head_dim", "head_dim"),
        ("sliding_window", "sliding_window"),
        ("rms_norm_eps", "norm_eps"),
    ],
)
@pytest.mark.parametrize("value", [0, -2])
def test_number_that_is_not_positive_is_refused(
    configured: Configure, key: str, name: str, value: int
) -> None:
    message = refusal(UnsupportedError, lambda: read_spec(configured(**{key: value})))
    assert f"expected a positive {name}" in message and f"found {value}" in message


def test_odd_head_dim_is_refused(configured: Configure) -> None:
    message = refusal(UnsupportedError, lambda: read_spec(configured(head_dim=15)))
    assert "expected an even head_dim" in message


def test_key_value_heads_that_do_not_divide_the_heads_are_refused(configured: Configure) -> None:
    message = refusal(UnsupportedError, lambda: read_spec(configured(num_key_value_heads=4)))
    assert "found 6 and 4" in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": ABSENT}, "found None"),
        ({"hidden_act": "gelu"}, "expected hidden_act silu, found 'gelu'"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "found code of its own (auto_map)"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "found 'longrope'"),
        (
            {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "dynamic"}},
            "found 'dynamic'",
        ),
        ({"rope_scaling": {"rope_type": "default"}}, "expected rope_theta in rope_scaling"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types of one kind"),
        ({"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "for 3 layers"),
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "for 3 layers"),
    ],
    ids=str,
)
def test_model_of_another_kind_is_refused_by_name(
    configured: Configure, changes: dict[str, Any], problem: str
) -> None:
    assert problem in refusal(UnsupportedError, lambda: read_spec(configured(**changes)))


def test_rope_parameters_that_are_no_object_are_refused(configured: Configure) -> None:
    message = refusal(InputError, lambda: read_spec(configured(rope_parameters="yarn")))
    assert "found 'yarn'" in message


# -- prompts --


def write_prompts(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / PROMPTS_FILE).write_text(json.dumps(config))
    return folder


def test_folder_without_prompts_has_none(tmp_path: Path) -> None:
    assert read_prompts(tmp_path) == Prompts()
    assert Prompts().find(None) == NO_PROMPT


def test_prompts_are_read_with_their_default(tmp_path: Path) -> None:
    texts = {"query": "find: ", "document": ""}
    prompts = read_prompts(write_prompts(tmp_path, prompts=texts, default_prompt_name="query"))
    assert prompts.fronts() == texts
    assert prompts.find(None) == prompts.find("query") == Prompt("find: ")
    assert prompts.find("document") == NO_PROMPT


def test_queries_and_documents_have_the_prompts_that_the_library_takes_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"passage": "p: ", "document": "d: ", "query": "q: "}
    library = SentenceTransformer(modules=[torch.nn.Identity()], prompts=texts)
    taken: list[str | None] = []
    monkeypatch.setattr(library, "encode", lambda *_, prompt_name, **__: taken.append(prompt_name))
    library.encode_query("a")
    library.encode_document("a")
    prompts = read_prompts(write_prompts(tmp_path, prompts=texts))
    assert [prompts.queries(), prompts.documents[prompts.queries()]] == taken


@pytest.mark.parametrize(
    ("texts", "documents"),
    [
        ({"query": "q: ", "corpus": "c: ", "passage": "p: "}, {"query": "passage"}),
        ({"query": "q: ", "corpus": "c: "}, {"query": "corpus"}),
        ({"query": "q: "}, {}),
        ({"passage": "p: "}, {}),
    ],
    ids=str,
)
def test_documents_have_the_prompt_that_the_library_documents(
    tmp_path: Path, texts: dict[str, str], documents: dict[str, str]
) -> None:
    assert read_prompts(write_prompts(tmp_path, prompts=texts)).documents == documents


def test_empty_name_is_no_prompt_where_there_is_a_default() -> None:
    prompts = Prompts.of_fronts({"query": "find: "}, default="query")
    assert prompts.find("") == NO_PROMPT and prompts.find(None) == Prompt("find: ")


@pytest.mark.parametrize(
    "config",
    [
        {"prompts": ["find"]},
        {"prompts": "find"},
        {"prompts": {"query": 3}},
        {"prompts": {"": "find"}},
        {"prompts": {"query": "find"}, "default_prompt_name": "document"},
        {"prompts": {"query": "find"}, "default_prompt_name": ["query"]},
        {"default_prompt_name": "query"},
    ],
    ids=str,
)
def test_prompts_of_the_wrong_form_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    refusal(InputError, lambda: read_prompts(write_prompts(tmp_path, **config)))


def test_unknown_prompt_is_refused_with_those_that_are_known() -> None:
    message = refusal(
        InputError, lambda: Prompts.of_fronts({"query": "q", "code": "c"}).find("other")
    )
    assert message == "expected a known prompt (code, query), found 'other'"


def test_adapters_prompts_win_where_it_brings_some(tmp_path: Path) -> None:
    model = write_prompts(tmp_path / "model", prompts={"query": "old"})
    tuned = write_prompts(tmp_path / "tuned", prompts={"query": "new"})
    bare = write_prompts(tmp_path / "bare", prompts={})
    assert find_prompts(model, tuned).find("query") == Prompt("new")
    for adapter in (bare, None):
        assert find_prompts(model, adapter).find("query") == Prompt("old")


def test_prompts_hash_changes_with_its_text_alone() -> None:
    first, other = (
        Prompts.of_fronts({"a": "x", "b": "y"}).hashes(),
        Prompts.of_fronts({"a": "x", "b": "z"}).hashes(),
    )
    assert first["a"] == other["a"] and first["b"] != other["b"]
