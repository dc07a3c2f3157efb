"""Everything that only a GPU can show, in one run and one file: `make gpu-check`.

python -m benchmarks.gpu.gpu_check [--json FILE] [--only PART]... [--model DIR [--artifacts DIR]]

Needs torch, triton, transformers and click; peft for the training step; ONNX Runtime or TensorRT,
and what else this package depends on, for `--model`. What cannot run is named in the file, and why.
Under 8 minutes on an H100.
"""

import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import mistral, pooling_kernel
from benchmarks.gpu.backends import PRECISIONS, RUNTIMES, measure_backend
from benchmarks.lib.record import Results, report, say, write


def main() -> int:
    """Run every part; one that breaks is reported and does not stop the others."""
    arguments = _arguments()
    parts: dict[str, Callable[[Results], None]] = {
        "compiled": pooling_kernel.compiled,
        "equal": pooling_kernel.equal_to_reference,
        "ptx": pooling_kernel.ptx_equal_to_reference,
        "speed": partial(pooling_kernel.speed, quick=False),
        "embedding": mistral.measure_embedding,
        "training": mistral.measure_training,
        **{
            f"{kind} {precision}": partial(
                measure_backend, runtime, arguments.model, arguments.artifacts, precision
            )
            for kind, runtime in RUNTIMES.items()
            for precision in PRECISIONS
        },
    }
    if not torch.cuda.is_available():
        say("expected a CUDA device, found none; nothing was run")
        return 2
    results, broken = Results(), False
    results.samples["device"] = _device()
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            results.skip(name, "left out by --only")
        else:
            broken |= not _run(name, part, results)
        torch.cuda.empty_cache()
        # what a run that is stopped has found so far
        path = write("gpu-check", results, arguments.json)
    status = report(results, path)
    return 1 if broken else status


def _arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write to this file")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="leave out the rest"
    )
    parser.add_argument(
        "--model", type=Path, help="checkpoint to export and verify in each runtime"
    )
    parser.add_argument("--artifacts", type=Path, help="keep them here; those there are used")
    return parser.parse_args()


def _run(name: str, part: Callable[[Results], None], results: Results) -> bool:
    started = time.perf_counter()
    try:
        part(results)
    except Exception as error:  # the next part may still run; exit code 1
        traceback.print_exc()
        results.skip(name, f"broke: {type(error).__name__}: {str(error).splitlines()[0]}")
        return False
    say(f"{name}: {time.perf_counter() - started:.0f} s")
    return True


def _device() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": torch.cuda.get_device_capability(),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.exists() else "unknown"


if __name__ == "__main__":
    sys.exit(main())
