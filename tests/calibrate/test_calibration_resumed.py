"""Interrupted calibration goes on where it was, only with its own work, and leaves none behind."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anna_export.artifact.folder import Artifact
from anna_export.calibrate.run import calibrate
from anna_export.calibrate.state_file import StateFile
from anna_export.calibrate.texts import calibration_texts
from anna_export.console.output import stage
from anna_export.errors import SpaceError
from anna_export.export.pipeline import RejectedError, export
from anna_export.export.prepare import Prepared
from anna_export.export.recipe import Recipe
from anna_export.progress import Progress
from anna_export.quantise.options import Quantised, storage
from anna_export.spec import Precision, read_spec
from anna_export.text.framing import read_framing
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.texts import ordinary_texts
from anna_export.weights.checkpoint import Checkpoint
from tests.support.folders import names
from tests.support.types import MakeAdapter, MakeArtifact, MakeModel

Begin = Callable[[Recipe, int], list[int]]
LAYERS = 3
WORK = ".out.calibration"


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    return make_model(initializer_range=0.2)


@pytest.fixture(scope="module")
def adapter(model: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(model)


class Recorded:
    """A stage that notes which layers were calibrated, and may be interrupted after so many."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.layers: list[int] = []
        self._last = interrupt_after

    @contextmanager
    def __call__(self, name: str, unit: str) -> Iterator[Progress | None]:
        yield self._progress if name == "calibrate" else None

    def _progress(self, done: int, total: int) -> None:
        assert total == LAYERS
        self.layers.append(done)
        if self._last is not None and done >= self._last:
            raise KeyboardInterrupt


@pytest.fixture
def recipe(model: Path, adapter: Path, few_texts: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """What is asked again and again; keywords change it."""

    def ask(**changes: Any) -> Recipe:
        defaults = {
            "model": model,
            "adapter": adapter,
            "out": tmp_path / "out",
            "precision": Precision.INT8,
            "max_tokens": 64,
            "verify": False,
            "max_loss": 1.0,
            "calibration": few_texts,
        }
        values = {**defaults, **changes}
        names = ("max_loss", "calibration", "high_precision")
        options = {name: values.pop(name, None) for name in names}
        return Recipe(storage=storage(values.pop("precision"), **options), **values)

    return ask


@pytest.fixture(scope="module")
def tokeniser(model: Path) -> Tokeniser:
    return Tokeniser.open(model, read_framing(model, read_spec(model), 64))


@pytest.fixture
def begin(tokeniser: Tokeniser) -> Begin:
    """Calibrates as an export does, but no more; gives the layers done, counted from 1."""

    def calibrate_until(recipe: Recipe, interrupt_after: int) -> list[int]:
        recorded = Recorded(interrupt_after)
        assert isinstance(recipe.storage, Quantised)
        checkpoint = Checkpoint.open(recipe.model, recipe.adapter)
        texts = calibration_texts(recipe.storage.calibration, tokeniser, Prompts({}))
        prepared = Prepared(
            recipe, recipe.storage.scheme, checkpoint, tokeniser, {}, Prompts({}), texts
        )
        with pytest.raises(KeyboardInterrupt):
            calibrate(checkpoint, texts, tokeniser, prepared.calibration_request, recorded)
        return recorded.layers

    return calibrate_until


@pytest.fixture
def uninterrupted(
    model: Path, adapter: Path, few_texts: Path, make_artifact: MakeArtifact
) -> Artifact:
    return make_artifact(model, Precision.INT8, adapter, calibration=few_texts, max_loss=1.0)


@pytest.mark.parametrize("after", [1, LAYERS])
def test_next_export_goes_on_after_the_last_layer_to_an_equal_artifact(
    recipe: Callable[..., Recipe], uninterrupted: Artifact, tmp_path: Path, after: int
) -> None:
    first, second = Recorded(after), Recorded()
    with pytest.raises(KeyboardInterrupt):
        export(recipe(), first)
    assert first.layers == list(range(1, after + 1)) and names(tmp_path) == {WORK}
    manifest = export(recipe(), second).artifact.manifest
    assert second.layers == list(range(after + 1, LAYERS + 1))
    # graphs, weights and calibration, all to the bit
    assert manifest.files == uninterrupted.manifest.files
    assert names(tmp_path) == {"out"}


def test_interrupted_twice_goes_on_twice(begin: Begin, recipe: Callable[..., Recipe]) -> None:
    assert [begin(recipe(), 1) for _ in range(LAYERS)] == [[1], [2], [3]]


def test_bound_on_the_loss_is_no_other_work(begin: Begin, recipe: Callable[..., Recipe]) -> None:
    begin(recipe(), 2)
    assert begin(recipe(max_loss=0.9), 3) == [3]


# -- other work --


def rewrite(model: Path) -> None:
    """Change one number of a model in its place; its size and config stay."""
    weights = load_file(model / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_model_that_was_rewritten_in_its_place_is_calibrated_anew(
    begin: Begin, model: Path, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "base"))
    request = recipe(model=copy, adapter=None)
    assert [begin(request, 1), begin(request, 2)] == [[1], [2]]
    rewrite(copy)
    assert begin(request, 1) == [1]


@pytest.mark.parametrize(
    "change",
    ["adapter", "no adapter", "texts", "format", "arithmetic"],
)
def test_other_work_is_not_gone_on_with(
    begin: Begin,
    model: Path,
    make_adapter: MakeAdapter,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    change: str,
) -> None:
    first: dict[str, Any] = {}
    if change == "arithmetic":
        first = {"precision": Precision.FP8}
    (tmp_path / "other.txt").write_text("\n".join(ordinary_texts(5)))
    changes: dict[str, dict[str, Any]] = {
        "adapter": {"adapter": make_adapter(model, seed=2)},
        "no adapter": {"adapter": None},
        "texts": {"calibration": tmp_path / "other.txt"},
        "format": {"precision": Precision.FP8},
        "arithmetic": {"high_precision": Precision.FP32},
    }
    begin(recipe(**first), 2)
    assert begin(recipe(**first, **changes[change]), 1) == [1]


@pytest.mark.parametrize("damage", ["empty", "short", "header", "shorter by a byte"])
def test_damaged_work_is_not_gone_on_with(
    begin: Begin, recipe: Callable[..., Recipe], tmp_path: Path, damage: str
) -> None:
    begin(recipe(), 2)
    work = tmp_path / WORK / "layers.safetensors"
    size = work.stat().st_size
    if damage == "header":
        work.write_bytes(work.read_bytes().replace(b"next_layer", b"next_later"))
    else:
        os.truncate(work, {"empty": 0, "short": 100, "shorter by a byte": size - 1}[damage])
    assert begin(recipe(), 1) == [1]
    assert begin(recipe(), 2) == [2]  # what was damaged has been replaced
    assert names(tmp_path) == {WORK} and names(tmp_path / WORK) == {work.name}


# -- nothing is left --


def test_work_goes_when_the_artifact_is_rejected(
    begin: Begin, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    begin(recipe(max_loss=1e-9), 1)
    with pytest.raises(RejectedError):
        export(recipe(max_loss=1e-9, verify=True), stage)
    assert names(tmp_path) == {"out.rejected"}


def test_work_of_another_precision_goes_too(
    begin: Begin, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    begin(recipe(), 1)
    export(recipe(precision=Precision.FP32, max_loss=None, calibration=None), stage)
    assert names(tmp_path) == {"out"}


def test_work_is_kept_beside_where_the_output_really_is(
    begin: Begin, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    begin(recipe(out=tmp_path / "link"), 1)
    assert names(tmp_path / "disk") == {WORK}
    assert begin(recipe(out=tmp_path / "disk" / "out"), 2) == [2]


def test_what_is_kept_is_read_back_to_the_bit(tmp_path: Path) -> None:
    work = StateFile(tmp_path / "work", "task")
    tensors = {"a": torch.randn(3, 5).T, "b": torch.randn(7)}
    values = {"third": 1 / 3, "names": {"x": "漢"}}
    work.save(4, values, tensors)
    state = work.load()
    assert state is not None and (state.next_layer, state.values) == (4, values)
    assert all(torch.equal(state.tensors[name], t) for name, t in tensors.items())
    assert StateFile(tmp_path / "work", "other task").load() is None


def test_work_that_finds_no_room_is_refused_in_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SpaceError, match="expected room for"):
        StateFile(tmp_path / "work", "task").save(1, {}, {})
    assert names(tmp_path) == set()
