"""Baked prompts: behind a prefix computed ahead, vectors are those of the whole prompt."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna_export import open_encoder, sentence_transformer
from anna_export.artifact.folder import Artifact
from anna_export.encoder import Encoder
from anna_export.errors import InputError
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from anna_export.text.prompts import NO_PROMPT
from anna_export.verify.texts import ODD_TEXTS, long_text, ordinary_texts
from tests.support.types import MakeArtifact, MakeModel

FEW_EXAMPLES = settings(max_examples=15, derandomize=True, deadline=None)
# fp32 against fp32: only the order of sums differs
CLOSE = 1e-6
MAX_TOKENS = 2400
WINDOW = 12
WORDS = {"one": 1, "few": 9, "some": 50, "many": 280, "most": 1100}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    tasks: dict[str, object] = {
        name: {"text": f"{long_text(words)}: "} for name, words in WORDS.items()
    }
    tasks["back"] = {"format": "bge-en-icl", "instruction": "Find like."}
    path.write_text(json.dumps({"tasks": tasks}))
    return path


@pytest.fixture(scope="module", params=[None, WINDOW], ids=["", "window"])
def model_and_artifact(
    request: pytest.FixtureRequest,
    make_model: MakeModel,
    make_artifact: MakeArtifact,
    prompts: Path,
) -> tuple[Path, Artifact]:
    model = make_model(sliding_window=request.param, initializer_range=0.2)
    return model, make_artifact(model, max_tokens=MAX_TOKENS, prompts=prompts)


@pytest.fixture(scope="module")
def encoder(model_and_artifact: tuple[Path, Artifact]) -> Encoder:
    return open_encoder(model_and_artifact[1].folder)


@pytest.fixture(scope="module")
def truth(model_and_artifact: tuple[Path, Artifact]) -> Encoder:
    model, artifact = model_and_artifact
    framing, prompts = artifact.manifest.framing, artifact.manifest.prompts
    return open_reference(model, framing=framing, prompts=prompts)


def worst(vectors: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(vectors - expected).max())


# -- the vectors --


@pytest.mark.parametrize("name", [*WORDS, "back"])
def test_vectors_are_the_references_behind_prompts_of_1_to_2000_tokens(
    encoder: Encoder, truth: Encoder, name: str
) -> None:
    texts = [*ODD_TEXTS, *ordinary_texts(6)]
    prompt = encoder.prompts.find(name)
    behind = [row for row in encoder.tokenise(texts, prompt) if row.prefix is not None]
    assert len(behind) >= (0 if name == "one" else len(texts) // 2)
    assert worst(encoder.encode(texts, name), truth.encode(texts, name)) <= CLOSE


@FEW_EXAMPLES
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    cut=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_behind_any_part_of_a_prefix_equals_the_whole(
    encoder: Encoder, truth: Encoder, lengths: list[int], cut: int, seed: int
) -> None:
    assert encoder.prefixes is not None
    prefix = encoder.prefixes.load(encoder.prompts.find("some")).first(cut)
    ids = np.random.default_rng(seed).integers(3, 32000, (len(lengths), max(lengths)))
    batch = TokenBatch(ids, np.array(lengths), prefix)
    expected = truth.backend.run(batch)
    assert worst(truth.backend.run(batch.joined()), expected) == 0  # the truth computes it again
    assert worst(encoder.backend.run(batch), expected) <= CLOSE


def test_text_alone_and_in_a_batch_behind_a_prefix(encoder: Encoder) -> None:
    # alone, prefix and text are attended to in one operator; in a batch, apart
    texts = ordinary_texts(8)
    together = encoder.encode(texts, "some")
    alone = np.stack([encoder.encode(text, "some") for text in texts])
    assert worst(together, alone) <= CLOSE


def test_long_text_is_cut_as_it_is_behind_the_whole_prompt(
    encoder: Encoder, truth: Encoder
) -> None:
    texts = [long_text(MAX_TOKENS), "short"]
    for name in ("many", "back"):
        rows = [row.joined() for row in encoder.tokenise(texts, encoder.prompts.find(name))]
        assert max(map(len, rows)) == MAX_TOKENS
        # no library keeps what stands behind a text that is cut: it is given the ids
        assert worst(encoder.encode(texts, name), truth.encode_ids(rows)) <= CLOSE


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_narrow_artifacts_keep_what_they_promise(
    sharp: Path, make_artifact: MakeArtifact, prompts: Path, precision: Precision
) -> None:
    artifact = make_artifact(sharp, precision, max_tokens=MAX_TOKENS, prompts=prompts)
    encoder, reference = open_encoder(artifact.folder), open_reference(sharp)
    reference.prompts = encoder.prompts
    for name in ("few", "many"):
        cosines = encoder.encode(ODD_TEXTS, name) * reference.encode(ODD_TEXTS, name)
        assert cosines.sum(axis=1).min() >= 0.9995
    size_bytes = artifact.manifest.prefixes["many"].size_bytes
    numbers = len(artifact.manifest.prefixes["many"].ids) * 2 * 3 * 2 * 16
    assert 2 * numbers <= size_bytes <= 2 * numbers + 1024


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.FP8])
def test_quantised_artifacts_are_closer_behind_a_prefix_than_by_the_whole_prompt(
    uneven: Path, make_artifact: MakeArtifact, prompts: Path, few_texts: Path, precision: Precision
) -> None:
    artifact = make_artifact(
        uneven,
        precision,
        max_tokens=MAX_TOKENS,
        prompts=prompts,
        max_loss=1,
        calibration=few_texts,
    )
    baked = open_encoder(artifact.folder)
    unbaked = Encoder(baked.backend, baked.tokeniser, baked.prompts)
    reference = open_reference(uneven)
    reference.prompts = baked.prompts
    texts = ordinary_texts(24)
    losses = [
        1 - (encoder.encode(texts, "some") * reference.encode(texts, "some")).sum(axis=1).mean()
        for encoder in (baked, unbaked)
    ]
    assert losses[0] < losses[1], losses


# -- which texts stand behind which prefix --


def test_texts_of_several_prompts_in_one_call_keep_their_order(
    encoder: Encoder, truth: Encoder
) -> None:
    texts = ordinary_texts(9)
    names: list[str | None] = ["few", "", "some", None, "many", "few", "back", "some", ""]
    vectors = encoder.encode(texts, names)
    assert worst(vectors, truth.encode(texts, names)) <= CLOSE
    one_by_one = [encoder.encode(text, name) for text, name in zip(texts, names, strict=True)]
    assert worst(vectors, np.stack(one_by_one)) <= CLOSE


def test_same_text_with_two_prompts_has_two_vectors(encoder: Encoder) -> None:
    vectors = encoder.encode(["a", "a", "a"], ["few", "some", "few"])
    assert (vectors[0] == vectors[2]).all() and worst(vectors[0], vectors[1]) > 1000 * CLOSE


def test_number_of_prompts_must_be_that_of_texts(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"one for each of 2 texts, found 3"):
        encoder.encode(["a", "b"], ["few", "few", "few"])
    with pytest.raises(InputError, match=r"known prompt \(back, few, many, most, one, some\)"):
        encoder.encode(["a", "b"], ["few", "fwe"])


@pytest.fixture
def backend_batches(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[TokenBatch]:
    """The batches that the backend is given."""
    batches: list[TokenBatch] = []
    run = encoder.backend.run

    def watched(batch: TokenBatch) -> np.ndarray:
        batches.append(batch)
        return run(batch)

    monkeypatch.setattr(encoder.backend, "run", watched)
    return batches


def test_backend_gets_only_the_texts_own_tokens(
    encoder: Encoder, backend_batches: list[TokenBatch]
) -> None:
    encoder.encode(["a text", "another one"], "many")
    (batch,) = backend_batches
    assert batch.width < 10 and batch.prefix is not None and len(batch.prefix) > 400


def test_prompt_written_into_the_text_is_found_by_its_ids(encoder: Encoder) -> None:
    # as sentence-transformers hands it over: ids, without the prompt's name
    texts = ordinary_texts(4)
    rows = [row.joined() for row in encoder.tokenise(texts, encoder.prompts.find("many"))]
    assert worst(encoder.encode_ids(rows), encoder.encode(texts, "many")) == 0
    vectors = sentence_transformer(
        encoder.prefixes._artifact.folder  # type: ignore[union-attr]
    ).encode(texts, prompt_name="many")
    np.testing.assert_allclose(vectors, encoder.encode(texts, "many"), rtol=0, atol=CLOSE)


def test_short_prefix_is_not_worth_it_in_front_of_a_long_text(encoder: Encoder) -> None:
    prompt = encoder.prompts.find("few")
    short, long = encoder.tokenise(["a text", long_text(400)], prompt)
    assert short.prefix is not None and long.prefix is None
    (ids,) = encoder.tokeniser.ids([long_text(400)], prompt)
    assert long.joined() == ids


def test_text_that_merges_with_the_prompt_takes_what_it_shares(
    make_model: MakeModel, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    (tmp_path / "prompts.json").write_text(
        json.dumps({"tasks": {"half": {"text": f"{long_text(20)} and half a wor"}}})
    )
    model = make_model(initializer_range=0.2)
    artifact = make_artifact(model, max_tokens=128, prompts=tmp_path / "prompts.json")
    encoder, reference = open_encoder(artifact.folder), open_reference(model)
    reference.prompts = encoder.prompts
    merging, plain = encoder.tokenise(["d is whole", " is not"], encoder.prompts.find("half"))
    assert merging.prefix is not None and plain.prefix is not None
    assert len(plain.prefix) - 8 <= len(merging.prefix) < len(plain.prefix)
    texts = ["d is whole", " is not", "k", "d"]
    assert worst(encoder.encode(texts, "half"), reference.encode(texts, "half")) <= CLOSE


def test_no_prompt_stands_behind_nothing(encoder: Encoder) -> None:
    assert [row.prefix for row in encoder.tokenise(["a", ""], NO_PROMPT)] == [None, None]


def test_start_token_alone_is_no_prompt(
    encoder: Encoder, backend_batches: list[TokenBatch]
) -> None:
    # among ids, all prompts are looked for, and every row starts with <s>
    encoder.encode_ids(encoder.tokeniser.ids(["a", "b"]))
    assert [batch.prefix for batch in backend_batches] == [None]
