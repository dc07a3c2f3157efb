"""The tokenizer as a model of Triton's Python backend: texts in, padded token ids out.

It is copied into the repository with the few modules of anna_export that it needs, and runs where
there are numpy and tokenizers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import triton_python_backend_utils as pb_utils

from anna_export.text.batch import TokenBatch
from anna_export.text.framing import TokenFraming
from anna_export.text.prompts import Prompt
from anna_export.text.tokeniser import Tokeniser


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the tokenizer and hold it to the artifact's golden token ids."""
        folder = Path(__file__).parent
        config = json.loads((folder / "framing.json").read_text(encoding="utf-8"))
        self.tokeniser = Tokeniser.open(folder, TokenFraming(**config["framing"]))
        for golden in config["golden"]:
            (ids,) = self.tokeniser.ids([golden["text"]])
            if ids != golden["ids"]:
                raise pb_utils.TritonModelException(
                    f"expected the golden token ids of {golden['text'][:40]!r}, found others; "
                    f"install tokenizers=={config['tokenizers']}"
                )
        self.prompt = Prompt(**config["prompt"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests with ids and masks, all padded alike so that they can be one batch."""
        texts = [[value.decode() for value in _values(request).reshape(-1)] for request in requests]
        rows = self.tokeniser.ids([text for request in texts for text in request], self.prompt)
        batch = TokenBatch.of_rows(rows, self.tokeniser.framing.pad_id)
        answers, start = [], 0
        for request in texts:
            part = slice(start, start + len(request))
            start += len(request)
            tensors = {"input_ids": batch.ids[part], "attention_mask": batch.mask[part]}
            answers.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, values) for name, values in tensors.items()]
                )
            )
        return answers


def _values(request: Any) -> np.ndarray:
    values: np.ndarray = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    return values
