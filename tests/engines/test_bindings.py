"""Names and plugin, held to NVIDIA's own bindings of TensorRT 11; no GPU, no TensorRT.

The bindings load over stub libraries, which are built here. pip install tensorrt-cu13-bindings
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        find_spec("tensorrt_bindings") is None,
        reason="needs tensorrt-cu13-bindings: pip install tensorrt-cu13-bindings==11.4.0.106",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for stub libraries"),
]
# What the bindings look for in each library; none of it is called.
STUBS = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
}
Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask a process that has loaded the bindings."""
    folder = tmp_path_factory.mktemp("stubs")
    for library, symbols in STUBS.items():
        source = folder / "stub.c"
        source.write_text("".join(f"void *{symbol}() {{ return 0; }}\n" for symbol in symbols))
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", str(source)]
        subprocess.run([*command, "-o", str(folder / library)], check=True)

    def answer(question: str) -> dict[str, Any]:
        worker = Path(__file__).with_name("bindings_worker.py")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        run = subprocess.run(
            [sys.executable, str(worker), question],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return dict(json.loads(run.stdout.splitlines()[-1]))

    return answer


def test_every_name_that_is_used_is_there(ask: Ask) -> None:
    answer = ask("names")
    assert answer["missing"] == []
    # the search itself finds what is there to find
    looked_at = {"trt.BuilderFlag.REFIT", "config.progress_monitor", "parser.get_error"}
    assert looked_at <= set(answer["used"])
    counted = {"context.execute_async_v3", "cudart.cudaMemcpyAsync", "refit_parser.refit_from_file"}
    assert counted <= set(answer["called"])


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
def test_every_name_that_is_used_is_in_tensorrt_rtx_too(ask: Ask) -> None:
    answer = ask("names-rtx")
    assert answer["missing"] == []
    assert "runtime_config.cuda_graph_strategy" in answer["used"]


@pytest.mark.slow
def test_plugin_is_launched_with_a_block_a_row_and_the_tokens_of_a_row(ask: Ask) -> None:
    answer = ask("plugin")
    assert answer["types"] == ["DataType.FLOAT"] and answer["output"] == ["B", 4096]
    hidden = ["DataType.BF16", "DataType.HALF", "DataType.FLOAT"]
    expected = [[kind, "DataType.INT64", "DataType.FLOAT"] for kind in hidden]
    assert sorted(answer["combinations"]) == sorted(expected)
    assert answer["extra"] == ["S"]
    launch = answer["launch"]
    assert launch["grid_x"] == "B" and launch["grid_y"] == launch["grid_z"] == 1
    assert launch["block_x"] == 256 and launch["block_y"] == launch["block_z"] == 1
    assert 0 <= launch["shared_mem"] <= 48 * 1024
    entry = answer["entry"]
    assert answer["name"] in entry
    # input pointers, int32, output pointer: what TensorRT passes, and nothing else
    assert [line.split()[1] for line in entry.splitlines() if ".param" in line] == [
        ".u64",
        ".u64",
        ".u32",
        ".u64",
    ]
