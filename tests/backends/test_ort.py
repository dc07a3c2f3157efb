"""ONNX Runtime's own part of a backend: what it refuses, and what it is told."""

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from anna_export.artifact.folder import Artifact
from anna_export.backends import ort
from anna_export.errors import DamagedError, InputError
from anna_export.graph.external_data import DATA_FILE
from anna_export.graph.tensors import IR_DTYPES
from anna_export.machine import hardware
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch
from tests.support.refusals import one_line
from tests.support.types import MakeArtifact


@pytest.fixture(scope="module")
def exported(base: Path, make_artifact: MakeArtifact) -> Artifact:
    return make_artifact(base)


@pytest.fixture
def copy(exported: Artifact, tmp_path: Path) -> Artifact:
    """A copy to damage; opened without the hashes that would find it first."""
    return Artifact(Path(shutil.copytree(exported.folder, tmp_path / "copy")), exported.manifest)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["model.cpu.onnx", DATA_FILE])
@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_graph_or_weights_that_do_not_load_are_refused_in_one_line(
    copy: Artifact, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copy.folder / name)
    with pytest.raises(DamagedError) as error:
        ort.open_backend(copy)
    message = one_line(error)
    assert f"ONNX Runtime {onnxruntime.__version__}" in message
    assert str(copy.folder / "model.cpu.onnx") in message


def test_only_the_first_line_of_what_the_runtime_says_is_shown(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for MatMul\nits whole\nstack")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(DamagedError) as error:
        ort.open_backend(exported)
    assert "found: no kernel for MatMul (" in one_line(error)


def test_no_rows_give_no_vectors(exported: Artifact) -> None:
    # ONNX Runtime's GroupQueryAttention divides by the batch size and takes the process with it
    none = TokenBatch(np.empty((0, 1), np.int64), np.empty(0, np.int64))
    vectors = ort.open_backend(exported).run(none)
    assert vectors.shape == (0, 40) and vectors.dtype == np.float32


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_what_was_asked_for(exported: Artifact, threads: int) -> None:
    backend = ort.open_backend(exported, threads=threads)
    assert backend._session.get_session_options().intra_op_num_threads == threads


def test_threads_are_the_cores_this_process_may_use_if_none_are_asked_for(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    backend = ort.open_backend(exported)
    assert backend._session.get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(exported: Artifact, threads: int) -> None:
    with pytest.raises(InputError) as error:
        ort.open_backend(exported, threads=threads)
    assert f"expected at least 1 thread, found {threads}" in one_line(error)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_cuda_that_turns_out_not_to_work_is_no_silent_cpu(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    # what a CUDA build says on a machine without a device or its libraries
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(InputError) as error:
        ort.open_backend(exported, device=device)
    assert "CUDA device" in one_line(error) and "choose the device cpu" in one_line(error)


@pytest.mark.parametrize("precision", IR_DTYPES)
def test_arithmetic_says_what_is_computed_in_and_from_what(
    base: Path, make_artifact: MakeArtifact, precision: Precision
) -> None:
    backend = ort.open_backend(make_artifact(base, precision))
    fallback = "" if precision is Precision.FP32 else f" (fallback of the {precision} graph)"
    assert backend.compute_label == f"fp32 on CPU{fallback}"


def test_int8_on_a_processor_whose_products_overflow_has_unsigned_weights(
    base: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, load = [], onnxruntime.InferenceSession

    def spy(path: str, options: onnxruntime.SessionOptions, **more: Any) -> Any:
        try:
            opened.append(options.get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:  # not set
            opened.append(None)
        return load(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    for exact in (True, False):
        monkeypatch.setattr(ort, "multiplies_int8_exactly", lambda exact=exact: exact)
        ort.open_backend(make_artifact(base, Precision.INT8), device="cpu")
    assert opened == [None, "1"]


@pytest.mark.parametrize(
    ("flags", "exact"), [("fpu avx2 avx512f", False), ("avx2 avx512_vnni", True), ("", True)]
)
def test_exact_products_are_read_off_the_processors_flags(
    monkeypatch: pytest.MonkeyPatch, flags: str, exact: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    flagged = [flags] if flags else []
    monkeypatch.setattr(hardware, "_of_each_core", lambda field: flagged)
    assert hardware.multiplies_int8_exactly() is exact
