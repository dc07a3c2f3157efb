"""The model repository: Triton's own schema takes it, and it gives the artifact's vectors."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anna_export import open_encoder
from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.cli import run
from anna_export.errors import InputError
from anna_export.integrations.triton.configs import Word, pbtxt
from anna_export.integrations.triton.write import Package, write_repository
from anna_export.spec import Precision
from tests.support.types import MakeArtifact

TEXTS = ["A man plays the guitar.", "", "漢字 🙂 été", "word " * 90]
PROMPTS = {"tasks": {"ask": {"text": "Find the answer to: "}, "b-c": {"text": "passage: "}}}


@pytest.fixture(scope="module")
def artifact(
    base: Path,
    make_artifact: MakeArtifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    return make_artifact(base, prompts=prompts)


@pytest.fixture(scope="module")
def repository(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    assert run(["package", str(artifact.folder), "--triton", str(out), "--name", "small"]) == 0
    return out


def schema() -> Any:
    """Return Triton's published ModelConfig, from its own client package."""
    client = importlib.util.find_spec("tritonclient")
    if client is None or not client.submodule_search_locations:
        pytest.skip("needs Triton's schema: pip install --no-deps tritonclient")
    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


def config_of(model: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((model / "config.pbtxt").read_text(), schema()())


def test_every_config_is_one_of_tritons_schema(repository: Path) -> None:
    models = sorted(path for path in repository.iterdir() if path.is_dir())
    assert [path.name for path in models] == [
        "small",
        "small.ask",
        "small.ask.tokenizer",
        "small.b-c",
        "small.b-c.tokenizer",
        "small.encoder",
        "small.tokenizer",
    ]
    for model in models:
        config = config_of(model)
        assert config.name == model.name and config.max_batch_size == 32
        assert (model / "1").is_dir()


def test_no_folder_is_lost_where_only_files_are_stored(repository: Path, tmp_path: Path) -> None:
    def folders(root: Path) -> set[Path]:
        return {path.relative_to(root) for path in root.rglob("*") if path.is_dir()}

    # as stores of objects, git and most archives do
    for file in repository.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(repository)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    assert folders(tmp_path) == folders(repository)
    assert Path("small/1") in folders(repository)


def described(tensors: Any) -> dict[str, tuple[int, list[int]]]:
    """Return each tensor's type and shape, by its name."""
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


def test_steps_of_an_ensemble_fit_together(repository: Path) -> None:
    for name in ("small", "small.ask", "small.b-c"):
        config = config_of(repository / name)
        tensors = described(config.input)
        for step in config.ensemble_scheduling.step:
            model = config_of(repository / step.model_name)
            outputs = described(model.output)
            inputs = {key: tensors[value] for key, value in step.input_map.items()}
            assert inputs == described(model.input)
            tensors |= {value: outputs[key] for key, value in step.output_map.items()}
        (output,) = config.output
        assert tensors[output.name] == described([output])[output.name]


RUNNER = """
import json, sys, types
import numpy as np
class Tensor:
    def __init__(self, name, values): self.name, self.values = name, values
    def as_numpy(self): return self.values
class Response:
    def __init__(self, tensors): self.tensors = {tensor.name: tensor.values for tensor in tensors}
class TritonModelException(Exception): pass
utils = types.ModuleType("triton_python_backend_utils")
utils.Tensor, utils.InferenceResponse = Tensor, Response
utils.TritonModelException = TritonModelException
utils.get_input_tensor_by_name = lambda request, name: request[name]
sys.modules["triton_python_backend_utils"] = utils
sys.path = [path for path in sys.path if not path.endswith("main")]
folder, texts, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
import importlib.util
spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
model = module.TritonPythonModel(); model.initialize({})
import anna_export
assert anna_export.__file__.startswith(folder), anna_export.__file__
assert not {"torch", "pydantic", "onnx"} & set(sys.modules)
# two requests at once, as the dynamic batcher hands them over
halves = texts[:1], texts[1:]
requests = [{"text": Tensor("text", np.array([[t.encode()] for t in h], object))} for h in halves]
answers = model.execute(requests)
assert len({answer.tensors["input_ids"].shape[1] for answer in answers}) == 1
np.savez(out, **{n: np.concatenate([a.tensors[n] for a in answers])
                 for n in ("input_ids", "attention_mask")})
"""


@pytest.mark.parametrize(
    ("name", "prompt"), [("small", ""), ("small.ask", "ask"), ("small.b-c", "b-c")]
)
def test_its_vectors_are_the_artifacts(
    artifact: Artifact, repository: Path, tmp_path: Path, name: str, prompt: str
) -> None:
    import onnxruntime

    tokenizer = repository / f"{name}.tokenizer" / "1"
    command = [sys.executable, "-c", RUNNER, str(tokenizer), json.dumps(TEXTS)]
    # from a folder where anna_export is not
    ran = subprocess.run(
        [*command, str(tmp_path / "tokens.npz")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    graph = repository / "small.encoder" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "tokens.npz") as tokens:
        (vectors,) = session.run(None, dict(tokens))
    expected = open_encoder(artifact.folder).encode(TEXTS, prompt)
    np.testing.assert_allclose(vectors, expected, atol=2e-6, rtol=0)


def test_tokenizer_of_another_library_is_found_out(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "1"
    shutil.copytree(repository / "small.tokenizer" / "1", copy)
    config = json.loads((copy / "framing.json").read_text())
    config["golden"][0]["ids"][-1] += 1
    (copy / "framing.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", RUNNER, str(copy), "[]", str(tmp_path / "x.npz")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode and "expected the golden token ids of" in ran.stderr


def test_text_format_writes_names_strings_and_lists() -> None:
    values = {"name": 'a "b"', "kind": Word("KIND_CPU"), "dims": [-1, 2], "in": [{"on": True}]}
    assert pbtxt(values).splitlines() == [
        r'name: "a \"b\""',
        "kind: KIND_CPU",
        "dims: -1",
        "dims: 2",
        "in {",
        "  on: true",
        "}",
    ]


def test_it_is_overwritten_only_when_asked(artifact: Artifact, tmp_path: Path) -> None:
    command = ["package", str(artifact.folder), "--triton", str(tmp_path / "models"), "--name", "m"]
    assert run(command) == 0
    assert run(command) == 2
    assert run([*command, "--overwrite"]) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("")
    other = [*command[:3], str(tmp_path / "other"), "--overwrite"]
    assert run(other) == 2 and (tmp_path / "other" / "precious").exists()


def test_what_cannot_be_packaged_is_refused(
    artifact: Artifact,
    base: Path,
    make_artifact: MakeArtifact,
    tmp_path: Path,
) -> None:
    out = tmp_path / "models"
    with pytest.raises(InputError, match=r"expected a TensorRT engine for sm_90 in .*, found none"):
        write_repository(artifact, Package("m", engine="sm_90"), out, overwrite=False)
    with pytest.raises(InputError, match=r"expected a model `name` of letters, .* found 'a/b'"):
        Package("a/b")
    int8 = make_artifact(base, Precision.INT8, max_loss=1)
    with pytest.raises(InputError, match="int8 is for CPUs; package an artifact in fp16"):
        write_repository(int8, Package("m", "cuda"), out, overwrite=False)
    assert not out.exists()


def test_an_engine_takes_the_place_of_the_graph(
    base: Path, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    shutil.copytree(make_artifact(base, Precision.BF16).folder, tmp_path / "artifact")
    opened = open_artifact(tmp_path / "artifact")
    record = {
        "target": "tensorrt",
        "version": "11.4.0",
        "compute_capability": "9.0",
        "driver": "13.0",
        "artifact_id": opened.manifest.artifact_id,
        "onnx_sha256": "",
        "structure_sha256": "",
        "prefix": False,
        "portable": False,
        "refittable": False,
        "profiles": [],
        "layers": {},
        "fusion_report": [],
        "seconds": 1,
        "sha256": "",
        "size_bytes": 4,
    }
    opened = add_evidence(opened, "engines/tensorrt/sm_90.engine", memoryview(b"plan"), prompts=())
    opened = add_evidence(opened, "engines/tensorrt/sm_90.json", json.dumps(record), prompts=())
    out = tmp_path / "models"
    write_repository(opened, Package("m", engine="sm_90"), out, overwrite=False)
    assert (out / "m.encoder" / "1" / "model.plan").read_bytes() == b"plan"
    command = ["package", str(opened.folder), "--triton", str(tmp_path / "again"), "--name", "m"]
    assert run([*command, "--compute-capability", "9.0"]) == 0
    assert (tmp_path / "again" / "m.encoder" / "1" / "model.plan").read_bytes() == b"plan"
    config = (out / "m.encoder" / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in config and re.search(r"kind: KIND_GPU", config)
