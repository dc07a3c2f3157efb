"""Names and modules are where sentence-transformers looks for them."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from anna_export.artifact.folder import Artifact
from anna_export.integrations.sentence_transformer import sentence_transformer
from anna_export.spec import Similarity
from anna_export.text.prompts import Prompt, Prompts, read_prompts
from anna_export.text.st_files import st_prompts, write_prompts
from anna_export.weights.merge import write_merged
from tests.support.st_folders import dense, save_st
from tests.support.types import MakeArtifact

WEB = Prompts(
    {"web": Prompt("find: "), "passage": Prompt("text: "), "plain": Prompt("say: ")},
    "web",
    {"web": "plain"},
)


def test_default_prompt_is_named_query_too() -> None:
    assert st_prompts(WEB)["query"] == "find: "


def test_prompt_that_is_named_query_stays() -> None:
    prompts = Prompts.of_fronts({"query": "a: ", "web": "b: "}, "web")
    assert st_prompts(prompts) == {"query": "a: ", "web": "b: "}


def test_prompt_of_the_documents_is_named_document_where_no_other_is() -> None:
    assert st_prompts(WEB)["document"] == "say: "
    by_name = {"query": Prompt("q: "), "document": Prompt("d: "), "page": Prompt("p: ")}
    assert st_prompts(Prompts(by_name, documents={"query": "page"}))["document"] == "d: "


def test_documents_of_query_are_named_without_a_default_too() -> None:
    prompts = Prompts(
        {"query": Prompt("q: "), "passage": Prompt("p: ")}, None, {"query": "passage"}
    )
    assert st_prompts(prompts) == {"query": "q: ", "document": "p: ", "passage": "p: "}


def test_without_a_default_no_name_is_added() -> None:
    assert st_prompts(Prompts.of_fronts({"web": "find: "})) == {"web": "find: "}


def test_written_prompts_are_read_again(tmp_path: Path) -> None:
    write_prompts(tmp_path, WEB)
    read = read_prompts(tmp_path)
    assert read.fronts() == st_prompts(WEB) and read.default == "web"


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("st") / "model"
    save_st(base, folder, layers=[dense(40, 24)], normalize=False)
    write_prompts(folder, WEB, Similarity.DOT)
    return folder


def test_encode_query_of_an_artifact_takes_the_default_prompt(
    trained: Path, make_artifact: MakeArtifact
) -> None:
    artifact: Artifact = make_artifact(trained)
    by_folder = SentenceTransformer(str(artifact.folder), device="cpu", trust_remote_code=True)
    for model in (sentence_transformer(artifact.folder), by_folder):
        np.testing.assert_array_equal(
            model.encode_query("a text"), model.encode("a text", prompt_name="web")
        )
        assert np.abs(model.encode_query("a text") - model.encode("a text", prompt="")).max() > 1e-3
        assert model.similarity_fn_name == "dot" == artifact.manifest.similarity
        assert model.get_sentence_embedding_dimension() == 24


def test_encode_query_of_a_merged_model_takes_the_default_prompt(
    trained: Path, adapter: Path, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(write_merged(trained, adapter, tmp_path / "out").folder))
    np.testing.assert_allclose(
        model.encode_query("a text"), model.encode("find: a text", prompt=""), atol=1e-5
    )
    assert model.similarity_fn_name == "dot"


def test_artifact_tells_what_stands_behind_its_decoder(
    trained: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(trained).folder
    listed = {path.parent.name for path in folder.glob("[0-9]_*/config.json")}
    assert listed == {"1_Pooling", "2_Dense"}
