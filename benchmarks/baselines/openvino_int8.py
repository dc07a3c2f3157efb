"""OpenVINO in int8, converted from PyTorch and quantised by nncf, as optimum-intel does it.

The `static` variant has int8 weights and activations, calibrated on rows that are not timed; the
`weights` variant int8 weights, and activations that OpenVINO quantises as it runs.
"""

import nncf
import numpy as np
import openvino
import torch

from benchmarks.baselines.job import Job, Model, PaddedModel, answer
from benchmarks.baselines.pytorch_model import LastTokenEmbedding

FILE = "model.xml"


def convert(job: Job) -> None:
    """Convert the PyTorch model and quantise it."""
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    rows = [-1, -1]
    with torch.inference_mode():
        model = openvino.convert_model(
            LastTokenEmbedding(job.base),
            example_input={"input_ids": ids, "attention_mask": mask},
            input=[
                ("input_ids", rows, openvino.Type.i64),
                ("attention_mask", rows, openvino.Type.i64),
            ],
        )
    if job.variant == "static":
        samples = [
            {"input_ids": np.array([row]), "attention_mask": np.ones((1, len(row)), np.int64)}
            for row in job.calibration
        ]
        model = nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
    else:
        model = nncf.compress_weights(model)
    openvino.save_model(model, job.served / FILE)


def open_model(job: Job) -> Model:
    """Compile it for latency; what is not int8 runs in bf16 where the processor has that."""
    core = openvino.Core()
    precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    compiled = core.compile_model(
        job.served / FILE,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job.threads,
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return request.infer({0: ids, 1: mask})[0].copy()

    return PaddedModel(run)


if __name__ == "__main__":
    answer(open_model, convert)
