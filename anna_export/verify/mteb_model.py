"""An encoder as mteb sees one: its prompts by task, its vectors, its name."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from sentence_transformers import SimilarityFunction

from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import Manifest
from anna_export.backends import load_encoder
from anna_export.errors import ExtraError, InputError
from anna_export.text.prompts import Prompt
from anna_export.verify.task_prompts import TaskPrompts, find_prompt

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError:
    raise ExtraError("expected mteb, found none; install anna-export[eval]") from None

Embed = Callable[[Sequence[str], Prompt], np.ndarray]
# mteb's models are called organisation/name
ORGANISATION: Final = "anna-export"
_PART: Final = r"[A-Za-z0-9][\w.-]*"


@dataclass(frozen=True, slots=True)
class ModelId:
    """The name and revision that mteb files an artifact's results under, as the hub spells them.

    Args:
        model_name: ORGANISATION/NAME; None: anna-export/ with the name of adapter or base, and the
            precision.
        revision: A commit or tag; None: the artifact's id.

    Raises:
        InputError: If mteb or the hub would not take one of them.
    """

    model_name: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.model_name is not None and not re.fullmatch(
            rf"{_PART}/{_PART}", self.model_name, re.ASCII
        ):
            raise InputError(
                "expected `model_name` to be ORGANISATION/NAME of letters, digits, '-', '_' and "
                f"'.', found {self.model_name!r}; name the repository that holds the model"
            )
        if self.revision is not None and not re.fullmatch(_PART, self.revision, re.ASCII):
            raise InputError(
                "expected `revision` to be a commit or tag of letters, digits, '-', '_' and '.', "
                f"found {self.revision!r}; mteb calls a folder by it"
            )


NO_ID: Final = ModelId()


class MtebModel(AbsEncoder):
    """What `mteb.evaluate` takes.

    Args:
        embed: Gives (N, D) float32 vectors of N texts with a prompt.
        find: Gives the prompt of a task by its name, its type, and the side of the text: "query",
            "document" or None.
        meta: What mteb files the results under, and what vectors are compared by.
    """

    def __init__(
        self,
        embed: Embed,
        find: Callable[[str, str, str | None], Prompt],
        meta: ModelMeta,
    ) -> None:
        self.embed, self.find = embed, find
        self.mteb_model_meta = meta
        name = str((meta.similarity_fn_name or ScoringFunction.COSINE).value)
        self._functions = (
            SimilarityFunction.to_similarity_fn(name),
            SimilarityFunction.to_similarity_pairwise_fn(name),
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return (N, D) float32 vectors of the batches' texts, in order.

        Source: mteb 2.26's EncoderProtocol.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        side = None if prompt_type is None else str(prompt_type.value)
        return self.embed(texts, self.find(task_metadata.name, task_metadata.type, side))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return (N, M) similarities of all, by sentence-transformers.

        mteb's own base class takes a distance, which models may be compared by, for none.
        """
        return self._functions[0](embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return (N,) similarities of rows of one index, by sentence-transformers."""
        return self._functions[1](embeddings1, embeddings2)


def mteb_model(
    artifact: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    task_prompts: TaskPrompts | None = None,
    model_name: str | None = None,
    revision: str | None = None,
) -> MtebModel:
    """Open an artifact for `mteb.evaluate(anna_export.mteb_model(artifact), tasks)`.

    Args:
        artifact: The artifact's folder.
        backend: As `open_encoder`.
        device: As `open_encoder`.
        task_prompts: Prompts by mteb task; what is not in them is prompted as the artifact's own
            prompts say, or those that ship with anna-export.
        model_name: ORGANISATION/NAME that mteb files results under; None: anna-export/ with the
            name of adapter or base, and the precision.
        revision: The revision that mteb files results under; None: the artifact's id.

    Raises:
        AnnaError: If the artifact is missing, damaged, or cannot run here.
    """
    model_id = ModelId(model_name, revision)
    opened = open_artifact(Path(artifact))
    encoder = load_encoder(opened, backend=backend, device=device)
    prompts = opened.manifest.prompts

    def find(task: str, kind: str, side: str | None) -> Prompt:
        return find_prompt(task, kind, side, prompts, task_prompts)

    return MtebModel(encoder.encode, find, artifact_meta(opened, model_id))


def artifact_meta(artifact: Artifact, model_id: ModelId = NO_ID) -> ModelMeta:
    """Return what mteb files an artifact's results under."""
    manifest = artifact.manifest
    made_from = [manifest.source.model, *manifest.source.adapters][-1]
    return model_meta(
        model_id.model_name or f"{ORGANISATION}/{made_from}-{manifest.precision}",
        model_id.revision or manifest.artifact_id,
        manifest,
    )


def model_meta(name: str, revision: str, manifest: Manifest) -> ModelMeta:
    """Return mteb's description of an artifact, or of the model it was made from."""
    spec = manifest.spec
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": revision,
            "n_parameters": spec.parameters,
            "embed_dim": spec.embedding_dim,
            "max_tokens": manifest.framing.max_tokens,
            # compared by identity in mteb: the name alone is not taken
            "similarity_fn_name": ScoringFunction(manifest.similarity),
            "use_instructions": True,
        }
    )
