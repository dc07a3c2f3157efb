"""What the shared fixtures give: the callables that tests name as types of their parameters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from anna_export.artifact.folder import Artifact
from anna_export.spec import Precision
from anna_export.text.batch import TokenBatch

MakeModel = Callable[..., Path]
MakeAdapter = Callable[..., Path]
MakeArtifact = Callable[..., Artifact]
MakeBatch = Callable[..., TokenBatch]
RunGraph = Callable[[Artifact, str, TokenBatch], np.ndarray]
Fp8 = Callable[[Precision], Artifact]
Probe = Callable[..., dict[ir.Value, torch.Tensor]]
Refused = Callable[..., str]
