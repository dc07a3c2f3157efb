"""The forecast: what an export really takes, on disk and in memory, said before any work."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from anna_export import quantise
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.cli import run
from anna_export.console.output import stage
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.machine import memory as process_memory
from anna_export.machine.memory import available_memory_bytes
from anna_export.quantise.footprint import (
    DEFAULT_TOKENS,
    ComparisonMethod,
    Forecast,
    forecast,
    method_that_fits,
)
from anna_export.quantise.options import storage
from anna_export.spec import EmbeddingSpec, Precision
from anna_export.text.framing import TokenFraming, read_framing
from anna_export.verify import prove
from anna_export.weights.checkpoint import Checkpoint
from tests.support.types import MakeModel

GB = 10**9
MISTRAL_7B = EmbeddingSpec(32000, 4096, 14336, 32, 32, 8, 128, 1e-5, 10000.0, 32768, 4096)
CONTRACT = TokenFraming(1, 2, 2, 4096)


@pytest.fixture(
    scope="module", params=[(256, 544, 3), (512, 992, 2)], ids=lambda size: f"{size[0]} wide"
)
def wide(request: pytest.FixtureRequest, make_model: MakeModel) -> Path:
    """A model large enough that its weights outweigh its tokenizer."""
    dim, ffn_dim, layers = request.param
    return make_model(
        hidden_size=dim,
        intermediate_size=ffn_dim,
        num_attention_heads=4,
        num_hidden_layers=layers,
    )


def plans(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    assert run(["plan", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# -- disk --


@pytest.mark.parametrize("precision", Precision)
def test_forecast_size_is_what_an_export_writes(
    wide: Path, tmp_path: Path, precision: Precision
) -> None:
    scheme, spec = quantise.load(precision), Checkpoint.open(wide).spec
    # a layer that is kept takes more, which only calibration knows
    max_loss = None if scheme.linear is None else 1.0
    recipe = Recipe(
        wide, None, tmp_path / "out", storage(precision, max_loss=max_loss), 64, verify=False
    )
    export(recipe, stage)
    needed = forecast(spec, read_framing(wide, spec, 64), scheme)
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    # what is not weights is only estimated, as a tokenizer of usual size
    assert needed.artifact_bytes == pytest.approx(written, rel=0.02)
    assert needed.disk_bytes >= written


def test_mistral_7b_in_bf16_takes_its_published_size() -> None:
    # 7.11 billion parameters without the language head, two bytes each
    size_bytes = forecast(MISTRAL_7B, CONTRACT, quantise.load(Precision.BF16)).artifact_bytes
    assert size_bytes == pytest.approx(2 * 7.11 * GB, rel=0.002)


def test_plan_writes_nothing_where_the_artifact_would_go(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", tmp_path / "there" / "not yet" / "nor this"):
        before = (tmp_path / "there").stat().st_mtime_ns
        assert plans(capsys, "--model", base, "--out", out)["disk_free_bytes"] > 0
        assert list((tmp_path / "there").iterdir()) == []
        assert (tmp_path / "there").stat().st_mtime_ns >= before


def test_plan_on_a_full_disk_says_what_does_not_fit(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1234))
    planned = plans(capsys, "--model", base, "--out", tmp_path)
    assert [entry["fits_disk"] for entry in planned["plans"]] == [False] * len(Precision)
    assert [entry["export_seconds"] for entry in planned["plans"]] == [None] * len(Precision)
    assert run(["plan", "--model", str(base), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for warning in ("DOES NOT FIT the disk", "time unknown"):
        assert text.count(warning) == len(Precision)


# -- memory --


@pytest.mark.parametrize("precision", Precision)
def test_needs_grow_with_the_model(precision: Precision) -> None:
    small = forecast(MISTRAL_7B, CONTRACT, quantise.load(precision))
    for name in ("layers", "dim", "ffn_dim", "vocab_size"):
        larger = replace(MISTRAL_7B, **{name: 2 * getattr(MISTRAL_7B, name)})
        needs = forecast(larger, CONTRACT, quantise.load(precision))
        for need in ("artifact_bytes", "disk_bytes", "reference_bytes"):
            assert getattr(needs, need) > getattr(small, need), (name, need)
        assert needs.export_bytes >= small.export_bytes
        # a table that is quantised, or beside quantised layers, stays in the mapped file
        mapped = name == "vocab_size" and quantise.load(precision).linear is not None
        assert (needs.serve_bytes > small.serve_bytes) == (not mapped), name


def test_export_takes_memory_by_the_largest_weight_not_by_the_model() -> None:
    for precision in Precision:
        shallow = forecast(replace(MISTRAL_7B, layers=1), CONTRACT, quantise.load(precision))
        deep = forecast(replace(MISTRAL_7B, layers=99), CONTRACT, quantise.load(precision))
        assert shallow.export_bytes == deep.export_bytes
    # what DESIGN promises of a full-size model stored in bf16
    assert (
        forecast(MISTRAL_7B, CONTRACT, quantise.load(Precision.BF16)).export_bytes <= 1.75 * 2**30
    )


def test_narrow_artifact_takes_more_memory_than_disk_on_a_cpu() -> None:
    # its weights are widened to fp32 for arithmetic
    needed = forecast(MISTRAL_7B, CONTRACT, quantise.load(Precision.BF16))
    assert needed.serve_bytes > 4 * 7 * GB > needed.artifact_bytes
    assert needed.reference_bytes > 4 * 7.1 * GB


def cgroups(tmp_path: Path, self_text: str, limits: dict[str, tuple[str, str]], stat: str) -> None:
    """Write a tree of control groups: folder → file of the limit and its text."""
    (tmp_path / "self").write_text(self_text)
    for group, (name, text) in limits.items():
        folder = tmp_path / "tree" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
        (folder / "memory.stat").write_text(f"file 900000000\n{stat} 100000000\n")


@pytest.fixture
def in_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(process_memory, "_OWN_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(process_memory, "_CGROUPS", tmp_path / "tree")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    return tmp_path


@pytest.mark.parametrize(
    ("self_text", "limits", "stat"),
    [
        ("0::/\n", {".": ("memory.max", str(GB))}, "anon"),
        ("0::/job/step\n", {"job/step": ("memory.max", str(GB))}, "anon"),
        (
            "0::/job/step\n",
            {"job": ("memory.max", str(GB)), "job/step": ("memory.max", "max")},
            "anon",
        ),
        (
            "3:cpuset:/\n4:memory:/docker/1f\n0::/\n",
            {"memory": ("memory.limit_in_bytes", str(GB))},
            "total_rss",
        ),
    ],
    ids=["own", "nested", "parent", "version 1, seen from a container"],
)
def test_limit_of_a_cgroup_is_heeded(
    in_tree: Path, self_text: str, limits: dict[str, tuple[str, str]], stat: str
) -> None:
    cgroups(in_tree, self_text, limits, stat)
    # page cache is given back when memory is short, so it does not count
    assert available_memory_bytes() == GB - 100_000_000


@pytest.mark.parametrize("text", ["max", str(2**63 - 4096)])
def test_cgroup_without_limit_leaves_the_machines_memory(in_tree: Path, text: str) -> None:
    cgroups(in_tree, "0::/\n", {".": ("memory.max", text)}, "anon")
    assert available_memory_bytes() == 64 * GB


def test_machine_without_cgroups_has_its_memory(in_tree: Path) -> None:
    assert available_memory_bytes() == 64 * GB


def test_address_space_limit_is_heeded(in_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = psutil.Process().memory_info().vms
    limits = {resource.RLIMIT_AS: (mapped + GB, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    # this process maps some more between the two looks
    assert available_memory_bytes() == pytest.approx(GB, abs=50_000_000)


def test_memory_beyond_a_limit_is_none_not_negative(
    in_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups(in_tree, "0::/\n", {".": ("memory.max", "5")}, "anon")
    assert available_memory_bytes() == 0


# -- the plan and the proof agree --


@pytest.mark.parametrize("spare", [0.95, 1.05, 1.15])
def test_plan_says_how_an_export_will_prove(
    base: Path,
    artifact: Artifact,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spare: float,
) -> None:
    manifest = open_artifact(artifact.folder).manifest
    needed = forecast(manifest.spec, manifest.framing, quantise.load(Precision.FP32))
    memory = int(spare * (needed.reference_bytes + needed.serve_bytes))
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: memory)
    proof = plans(capsys, "--model", base)["plans"][0]["proof"]

    class Streamed(Exception):
        pass

    def streamed(*_: object, **__: object) -> None:
        raise Streamed

    class InMemory(Exception):
        pass

    def in_memory(*_: object, **__: object) -> None:
        raise InMemory

    monkeypatch.setattr(prove, "compare_weights", streamed)
    monkeypatch.setattr("anna_export.reference.load.open_reference", in_memory)
    expected = InMemory if proof == "every text, by the graph" else Streamed
    assert expected is (InMemory if spare > 1.1 else Streamed)
    with pytest.raises(expected):
        prove.prove(artifact, base)


def test_longer_calibration_needs_more_disk_and_memory() -> None:
    scheme = quantise.load(Precision.INT8)
    usual, twice = (
        forecast(MISTRAL_7B, CONTRACT, scheme, tokens) for tokens in (DEFAULT_TOKENS, 8192)
    )
    # hidden states of the reference, and of a fifth of the texts as the candidate
    assert twice.disk_bytes - usual.disk_bytes == round(1.2 * 4096) * 4096 * 4
    assert twice.export_bytes - usual.export_bytes == 4096 * (3 * 4096 + 2 * 14336) * 4
    assert twice.artifact_bytes == usual.artifact_bytes


@pytest.mark.parametrize("precision", Precision)
def test_proof_of_every_text_needs_reference_and_artifact_at_once(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    needed, scheme = Forecast(precision, 0, 0, 0, 3 * GB, 4 * GB), quantise.load(precision)
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 7 * GB)
    assert method_that_fits(needed, scheme) is not ComparisonMethod.EVERY_TEXT
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 8 * GB)
    assert method_that_fits(needed, scheme) is ComparisonMethod.EVERY_TEXT


@pytest.mark.parametrize("precision", Precision)
def test_graph_is_compared_with_a_streamed_reference_where_it_is_served_as_stored(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    needed, scheme = Forecast(precision, 0, 0, 0, 3 * GB, 4 * GB), quantise.load(precision)
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 4 * GB)
    streamed = precision in (Precision.INT8, Precision.INT4)
    assert method_that_fits(needed, scheme) is (
        ComparisonMethod.FEW_TEXTS if streamed else ComparisonMethod.WEIGHTS
    )
    monkeypatch.setattr(process_memory, "available_memory_bytes", lambda: 3 * GB)
    assert method_that_fits(needed, scheme) is ComparisonMethod.WEIGHTS
