"""Export end to end: floats are proved, and what is not the reference's is rejected."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import open_artifact
from anna_export.artifact.manifest import CARD_FILE, MANIFEST_FILE, PARITY_FILE, hash_file
from anna_export.backends import open_encoder
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.encoder import Encoder
from anna_export.errors import ExistsError, InputError, MissingError, ParityError
from anna_export.export import write as writing
from anna_export.export.pipeline import Exported, export
from anna_export.export.recipe import Recipe
from anna_export.files.stream import Written
from anna_export.graph.external_data import DATA_FILE, write_data_file
from anna_export.progress import Progress
from anna_export.quantise.options import Fp32, storage
from anna_export.reference.load import open_reference
from anna_export.spec import Precision
from anna_export.text.prompts import PROMPTS_FILE
from anna_export.verify.texts import ODD_TEXTS, long_text
from tests.support.folders import names

TOKENS = 61  # what a proof costs grows with the longest text
# What README promises, not what the schemes say of themselves.
WORST_COSINE = {Precision.FP32: 0.999999, Precision.FP16: 0.9999, Precision.BF16: 0.9995}

Exports = Callable[[Precision], Exported]


@pytest.fixture(scope="module")
def exported(
    base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Exported]:
    """The proved export of base and adapter in a precision, made once."""
    made: dict[Precision, Exported] = {}

    def make(precision: Precision) -> Exported:
        if precision not in made:
            out = tmp_path_factory.mktemp("precision") / precision
            made[precision] = export(Recipe(base, adapter, out, storage(precision), TOKENS), stage)
        return made[precision]

    return make


def unproved(base: Path, adapter: Path | None, out: Path, **changes: Any) -> Exported:
    changes = {"verify": False, **changes}
    return export(Recipe(base, adapter, out, Fp32(), TOKENS, **changes), stage)


# -- what is proved --


@pytest.mark.parametrize("precision", WORST_COSINE)
def test_export_of_every_precision_is_close_to_the_reference(
    exported: Exports, precision: Precision
) -> None:
    parity = exported(precision).parity
    assert parity is not None and parity.verdict == "pass" and parity.reasons == []
    assert parity.worst_cosine >= WORST_COSINE[precision] == parity.thresholds.min_cosine
    assert parity.longest_tokens == TOKENS and parity.nonfinite == 0


@pytest.mark.parametrize("precision", WORST_COSINE)
def test_vector_is_the_same_alone_and_in_a_batch_in_every_precision(
    exported: Exports, precision: Precision
) -> None:
    parity = exported(precision).parity
    assert parity is not None and parity.batch1_max_abs is not None
    # all compute in fp32 on a CPU: only the order of sums differs
    assert parity.batch1_max_abs <= 1e-6


@pytest.mark.parametrize("precision", WORST_COSINE)
def test_proved_vectors_are_those_that_the_artifact_gives(
    exported: Exports, reference: Encoder, precision: Precision
) -> None:
    found = open_encoder(exported(precision).artifact.folder, device="cpu").encode(ODD_TEXTS[:9])
    expected = reference.encode(ODD_TEXTS[:9])
    assert (found.astype(np.float64) * expected).sum(axis=1).min() >= WORST_COSINE[precision]
    # a narrow type is not fp32 in disguise: its weights are off by 2**-12 or more
    assert (np.abs(found - expected).max() > 1e-5) == (precision is not Precision.FP32)


@pytest.mark.parametrize("precision", WORST_COSINE)
def test_proof_on_a_cpu_says_which_graph_it_was_of(exported: Exports, precision: Precision) -> None:
    parity = exported(precision).parity
    assert parity is not None
    fallback = "" if precision is Precision.FP32 else f" (fallback of the {precision} graph)"
    assert parity.candidate == f"ort: fp32 on CPU{fallback}"
    assert "PyTorch" in parity.reference


def test_narrow_weights_take_half_the_room(exported: Exports) -> None:
    sizes = {
        precision: exported(precision).artifact.manifest.files[DATA_FILE].size_bytes
        for precision in WORST_COSINE
    }
    assert sizes[Precision.BF16] == sizes[Precision.FP16]
    assert sizes[Precision.BF16] / sizes[Precision.FP32] == pytest.approx(0.5, rel=0.01)


def test_prompts_of_the_adapter_are_proved_and_kept(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    tuned = shutil.copytree(adapter, tmp_path / "tuned")
    prompts = {"prompts": {"query": "Query: ", "document": ""}}
    (tuned / PROMPTS_FILE).write_text(json.dumps(prompts))
    recipe = Recipe(base, tuned, tmp_path / "out", Fp32(), TOKENS)
    made = export(recipe, stage)
    assert made.parity is not None and made.parity.prompts == ["document", "query"]
    assert "query: " in made.parity.worst_text or "no prompt: " in made.parity.worst_text
    assert set(made.artifact.manifest.evidence[PARITY_FILE].prompts) == {"query", "document"}


# -- what was asked --


def test_export_without_adapter_is_the_base(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    unproved(base, None, tmp_path / "out")
    texts = ["a transfer", "to another bank"]
    found = open_encoder(tmp_path / "out").encode(texts)
    # fp32 on both sides; the components are about 0.15
    np.testing.assert_allclose(found, open_reference(base).encode(texts), rtol=0, atol=1e-6)
    assert np.abs(found - encoder.encode(texts)).max() > 0.01
    assert open_artifact(tmp_path / "out").manifest.source.adapter is None


def test_max_tokens_cuts_longer_texts(exported: Exports, reference: Encoder) -> None:
    artifact = exported(Precision.FP32).artifact
    assert artifact.manifest.framing.max_tokens == TOKENS
    text = long_text(3 * TOKENS)
    (ids,), (whole,) = artifact.tokeniser().ids([text]), reference.tokeniser.ids([text])
    assert len(ids) == TOKENS < len(whole)
    expected = reference.encode_ids([[*whole[: TOKENS - 1], whole[-1]]])
    found = open_encoder(artifact.folder).encode([text])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # as above


def test_unverified_export_has_no_proof_and_says_so(base: Path, tmp_path: Path) -> None:
    made = unproved(base, None, tmp_path / "out")
    assert made.parity is None and "prove" not in made.seconds
    artifact = open_artifact(tmp_path / "out", check=True)
    assert read_evidence(artifact, PARITY_FILE) is None
    assert not (tmp_path / "out" / PARITY_FILE).exists()
    assert "Not verified" in (tmp_path / "out" / CARD_FILE).read_text()


def test_proof_and_card_cover_the_artifact(exported: Exports) -> None:
    made = exported(Precision.BF16)
    manifest = open_artifact(made.artifact.folder, check=True).manifest
    assert manifest == made.artifact.manifest
    assert set(manifest.evidence) == {PARITY_FILE, CARD_FILE}
    for entry in manifest.evidence.values():
        assert entry.covers == manifest.artifact_id


def test_card_tells_the_proof(exported: Exports) -> None:
    made = exported(Precision.BF16)
    card, parity = (made.artifact.folder / CARD_FILE).read_text(), made.parity
    assert parity is not None
    for figure in (
        f"{parity.worst_cosine:.7f}",
        "**pass**",
        "fallback of the bf16 graph",
        made.artifact.manifest.artifact_id,
    ):
        assert figure in card


def test_seconds_are_told_by_stage(exported: Exports) -> None:
    seconds = exported(Precision.FP32).seconds
    assert list(seconds) == ["merge and write", "prove"] and min(seconds.values()) > 0


def test_same_inputs_give_the_same_artifact_id(
    base: Path, exported: Exports, adapter: Path
) -> None:
    first = exported(Precision.FP32).artifact
    again = unproved(base, adapter, first.folder.parent / "again").artifact
    assert again.manifest.artifact_id == first.manifest.artifact_id
    assert hash_file(again.folder / DATA_FILE) == first.manifest.files[DATA_FILE]


# -- existing outputs --


def test_existing_output_is_refused_before_work(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExistsError, match="`overwrite`"):
        unproved(tmp_path / "no model", None, tmp_path / "out")
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == set()


def test_overwriting_replaces_an_artifact(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = unproved(base, None, tmp_path / "out").artifact.manifest
    second = unproved(base, adapter, tmp_path / "out", overwrite=True).artifact.manifest
    assert first.artifact_id != second.artifact_id
    assert open_artifact(tmp_path / "out", check=True).manifest == second
    assert names(tmp_path) == {"out"}


def test_failed_overwrite_leaves_the_old_artifact(base: Path, tmp_path: Path) -> None:
    first = unproved(base, None, tmp_path / "out").artifact.manifest
    with pytest.raises(MissingError):
        unproved(base, tmp_path / "no adapter", tmp_path / "out", overwrite=True)
    assert open_artifact(tmp_path / "out", check=True).manifest == first


# -- rejection --


@pytest.fixture
def one_wrong_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes one number of one layer wrong, and its hash right."""

    def write(
        folder: Path, graphs: Mapping[str, ir.Model], progress: Progress | None = None
    ) -> Written:
        write_data_file(folder, graphs, progress)
        weights = graphs["canonical"].graph.initializers["layers.1.mlp.down_proj.weight"]
        stored = weights.const_value
        assert isinstance(stored, ir.ExternalTensor) and stored.offset is not None
        path = folder / DATA_FILE
        with path.open("r+b") as file:
            file.seek(stored.offset)
            file.write(np.float32(2).tobytes())
        entry = hash_file(path)
        return Written(entry.sha256, entry.size_bytes)

    monkeypatch.setattr(writing, "write_data_file", write)


@pytest.mark.usefixtures("one_wrong_weight")
def test_wrong_weight_is_rejected_with_its_figures(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", tmp_path / "out.rejected"
    with pytest.raises(ParityError, match=r"worst cosine 0\.\d+ is below 0\.999999") as error:
        export(Recipe(base, adapter, out, Fp32(), TOKENS), stage)
    assert str(kept) in str(error.value)
    assert names(tmp_path) == {kept.name}
    parity = read_evidence(open_artifact(kept, check=True), PARITY_FILE)
    assert parity is not None and parity["verdict"] == "fail"
    assert parity["vectors"]["worst_cosine"] < 0.999999
    assert "**fail**" in (kept / CARD_FILE).read_text()


@pytest.mark.usefixtures("one_wrong_weight")
def test_rejected_export_exits_1_with_one_line_and_its_figures(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "out.rejected").mkdir()
    command = ["--model", str(base), "--out", str(out), "--max-tokens", "61", "--json"]
    assert run(command) == 1
    found = capsys.readouterr()
    shown = json.loads(found.out)
    assert shown["artifact"] == str(tmp_path / "out.rejected")
    assert shown["parity"]["verdict"] == "fail" and shown["parity"]["worst_cosine"] < 0.999999
    assert found.err.count("\n") == 1
    assert found.err.startswith("anna-export: expected the reference's vectors, found: worst")


@pytest.mark.usefixtures("one_wrong_weight")
def test_second_rejection_replaces_the_first(base: Path, adapter: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out.rejected"
    ids = []
    for lora in (None, adapter):
        with pytest.raises(ParityError):
            export(Recipe(base, lora, tmp_path / "out", Fp32(), TOKENS), stage)
        ids.append(open_artifact(kept, check=True).manifest.artifact_id)
    assert ids[0] != ids[1] and names(tmp_path) == {kept.name}


@pytest.mark.usefixtures("one_wrong_weight")
def test_rejection_leaves_the_old_artifact(base: Path, exported: Exports, tmp_path: Path) -> None:
    good = exported(Precision.FP32).artifact
    out = Path(shutil.copytree(good.folder, tmp_path / "out"))
    with pytest.raises(ParityError):
        export(Recipe(base, None, out, Fp32(), TOKENS, overwrite=True), stage)
    assert open_artifact(out, check=True).manifest == good.manifest
    assert names(tmp_path) == {"out", "out.rejected"}


def test_folder_where_a_rejected_artifact_would_go_is_not_lost(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out.rejected").mkdir()
    (tmp_path / "out.rejected" / "letter").write_text("dear")
    with pytest.raises(ExistsError, match=r"out\.rejected; remove that folder yourself"):
        unproved(base, None, tmp_path / "out")
    assert names(tmp_path) == {"out.rejected"}


def test_prompt_too_long_for_the_limit_is_refused_before_any_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(base, tmp_path / "base"))
    (model / PROMPTS_FILE).write_text(json.dumps({"prompts": {"query": "word " * 70}}))
    monkeypatch.setattr(writing, "write_data_file", lambda *_: pytest.fail("it was written"))
    with pytest.raises(InputError, match="expected a prompt shorter than"):
        export(Recipe(model, None, tmp_path / "out", Fp32(), TOKENS, verify=False), stage)
    assert names(tmp_path) == {"base"}


def test_output_that_holds_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    inside = Path(shutil.copytree(base, tmp_path / "out" / "base"))
    (tmp_path / "out" / MANIFEST_FILE).write_text("{}")
    with pytest.raises(InputError, match="which holds it"):
        export(Recipe(inside, None, tmp_path / "out", Fp32(), overwrite=True), stage)
    assert names(tmp_path / "out") == {"base", MANIFEST_FILE}
