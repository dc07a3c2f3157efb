"""Ours: the artifact of `anna-export`, through its Encoder; the variant is the precision."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from anna_export import open_encoder
from anna_export.text.batch import TokenBatch
from benchmarks.baselines.job import Job, Rows, answer

TOOL = Path(sys.executable).with_name("anna-export")


class OurModel:
    """The encoder, and its backend for batches that the encoder would rather split."""

    def __init__(self, job: Job) -> None:
        self._encoder = open_encoder(job.served, device="cpu", threads=job.threads)

    def embed(self, rows: Rows) -> np.ndarray:
        """Embed rows in the batches that the encoder makes."""
        return self._encoder.encode_ids(rows)

    def embed_batch(self, rows: Rows) -> np.ndarray:
        """Embed rows as one batch, padded to the longest."""
        pad_id = self._encoder.tokeniser.framing.pad_id
        return self._encoder.backend.run(TokenBatch.of_rows(rows, pad_id))


def convert(job: Job) -> None:
    """Export the artifact; how close it is shows in `check`."""
    command = [str(TOOL), "--model", str(job.base), "--out", str(job.served)]
    command += [f"--{job.variant}", "--no-verify"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    answer(OurModel, convert)
