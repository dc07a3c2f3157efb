"""PyTorch as sentence-transformers runs it: the last real token's state, to unit length."""

from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.baselines.job import Job, Model, PaddedModel, answer


class LastTokenEmbedding(torch.nn.Module):
    """A decoder with last-token pooling for right-padded batches."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.decoder = transformers.AutoModel.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        ).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Take ids and mask (B, S), return (B, D) rows of unit length."""
        outputs = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        last = attention_mask.sum(dim=1) - 1
        rows = torch.arange(input_ids.shape[0])
        return torch.nn.functional.normalize(outputs.last_hidden_state[rows, last], dim=-1)


def open_model(job: Job) -> Model:
    """Load what `convert` wrote."""
    torch.set_num_threads(job.threads)
    model = LastTokenEmbedding(job.served, getattr(torch, job.variant))

    @torch.inference_mode()
    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()

    return PaddedModel(run)


def convert(job: Job) -> None:
    """Write the weights in the type that the variant names."""
    model = LastTokenEmbedding(job.base, getattr(torch, job.variant))
    model.decoder.save_pretrained(job.served)


if __name__ == "__main__":
    answer(open_model, convert)
