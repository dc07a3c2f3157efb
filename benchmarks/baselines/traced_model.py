"""ONNX as sentence-transformers and optimum make it: traced, then quantised dynamically.

The `fp32` variant only traces. The `int8` variant quantises what that left in the job's `traced`
folder as `export_dynamic_quantized_onnx_model(…, "avx512_vnni")` does: every operator that has an
integer form, products of two activations too; weights per column, activations per tensor.
"""

import warnings

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.baselines.job import Job, Model, PaddedModel, answer
from benchmarks.baselines.pytorch_model import LastTokenEmbedding

FILE = "model.onnx"
# optimum's own exporter writes this opset, and through TorchScript
OPSET = 18


def convert(job: Job) -> None:
    """Trace the model, or quantise the traced one."""
    job.served.mkdir(parents=True)
    if job.variant == "fp32":
        _trace(job)
        return
    quantize_dynamic(
        job.traced / FILE,
        job.served / FILE,
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True, "MatMulConstBOnly": False},
    )


def _trace(job: Job) -> None:
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    rows = {0: "batch", 1: "tokens"}
    warnings.simplefilter("ignore")  # of shapes taken for constants: `check` would show that
    torch.onnx.export(
        LastTokenEmbedding(job.base),
        (ids, mask),
        str(job.served / FILE),
        dynamo=False,
        opset_version=OPSET,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_axes={"input_ids": rows, "attention_mask": rows, "sentence_embedding": rows},
    )


def open_model(job: Job) -> Model:
    """Load what `convert` wrote in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(job.served / FILE), options, providers=["CPUExecutionProvider"]
    )

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return PaddedModel(run)


if __name__ == "__main__":
    answer(open_model, convert)
