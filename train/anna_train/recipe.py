"""What `anna-train tune` is asked for: one YAML file, read into plain values."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from anna_export.errors import InputError, MissingError
from anna_export.files.validation import validated

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Strict):
    """One data set.

    Args:
        path: Its rows, JSONL.
        task: The name of its prompt in the prompts file.
    """

    path: Path
    task: str


class BatchRecipe(_Strict):
    """What one step sees; all of it from one data set.

    Args:
        queries: Rows of a step, over all processes.
        negatives: Of each row, drawn from its own; fewer where it has fewer.
        group: Queries that share their examples, and the keys and values of these.
    """

    queries: Positive = 128
    negatives: Annotated[int, Field(ge=0)] = 7
    group: Positive = 16


class LimitsRecipe(_Strict):
    """Tokens that a text may have, its prompt and `<s>` and `</s>` not counted; the rest is cut."""

    query: Positive = 512
    document: Positive = 512
    example_query: Positive = 256
    example_response: Positive = 256


class ExamplesRecipe(_Strict):
    """In-context examples in front of a group's queries: their number is drawn from a range."""

    least: Annotated[int, Field(ge=0)] = 0
    most: Annotated[int, Field(ge=0, le=20)] = 5

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "ExamplesRecipe":
        if self.least > self.most:
            raise ValueError(f"expected least up to most, found {self.least} and {self.most}")
        return self


class LossRecipe(_Strict):
    """The loss; each part is a switch.

    Args:
        temperature: Divides cosines.
        contrastive: Whether there is InfoNCE.
        soft_labels: Weight of the divergence from the teacher's scores; 0: none.
        false_negative_margin: Another query's document whose cosine is above that of the own
            positive by more than this is no negative; None: all are.
        matryoshka: Shorter widths of the vector that the loss is taken at too.
    """

    temperature: Annotated[float, Field(gt=0)] = 0.02
    contrastive: bool = True
    soft_labels: Annotated[float, Field(ge=0)] = 1.0
    false_negative_margin: float | None = 0.1
    matryoshka: tuple[Positive, ...] = ()

    @pydantic.model_validator(mode="after")
    def _something(self) -> "LossRecipe":
        if not self.contrastive and not self.soft_labels:
            raise ValueError("expected contrastive or soft_labels, found neither")
        return self


class LoraRecipe(_Strict):
    """The adapter.

    Args:
        rank: Of both factors.
        alpha: Over rank, what their product is multiplied by.
        dropout: Share of a layer's inputs that its adapter does not see.
        targets: Names of the linear layers.
        rslora: Whether alpha stands over the root of rank.
        quantise: What the base's weights are held in: as they are, or in 4 bits (QLoRA, CUDA).
    """

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    rslora: bool = False
    quantise: Literal["none", "nf4"] = "none"


class OptimizerRecipe(_Strict):
    """AdamW over the adapter's weights.

    Args:
        learning_rate: The highest.
        warmup: Share of the steps over which it rises in a line.
        schedule: How it falls after that.
        weight_decay: Of AdamW.
        clip: Longest gradient, over all weights.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup: Share = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0


class EvaluationRecipe(_Strict):
    """What is measured while training: nDCG@10 of each file's queries over all its positives.

    Args:
        every: Steps between evaluations; they are taken before the first and after the last too.
        data: Files of rows.
        examples: In front of the queries for the few-shot figure; 0: none is taken.
    """

    every: Positive = 100
    data: tuple[DataRecipe, ...] = ()
    examples: Annotated[int, Field(ge=0)] = 0


class RunRecipe(_Strict):
    """How it is computed and kept; none of it changes what is learnt but by rounding.

    Args:
        precision: Type of the matrix products; the adapter's weights are always fp32.
        mini_batch_tokens: Tokens in memory at a time; None: what the memory forecast allows.
        recompute: Whether activations are computed twice to save memory (activation checkpointing).
        threads: Of a CPU; None: as many as PyTorch takes.
        checkpoint_every: Steps between checkpoints.
        tensorboard: Whether TensorBoard's files are written beside log.csv.
    """

    precision: Literal["fp32", "bf16"] = "bf16"
    mini_batch_tokens: Positive | None = None
    recompute: bool = False
    threads: Positive | None = None
    checkpoint_every: Positive = 100
    tensorboard: bool = False


class TuneRecipe(_Strict):
    """All of it.

    Args:
        base: Folder of the base model, or its name on a hub.
        prompts: prompts.json, as `anna-export --prompts` reads it.
        data: Data sets; each step's rows are of one of them.
        epochs: Passes over the data, where steps is not given.
        steps: Steps in all, in place of epochs.
        seed: Of everything that is drawn.
    """

    base: str
    prompts: Path
    data: Annotated[tuple[DataRecipe, ...], Field(min_length=1)]
    epochs: Positive = 1
    steps: Positive | None = None
    seed: int = 0
    batch: BatchRecipe = BatchRecipe()
    limits: LimitsRecipe = LimitsRecipe()
    examples: ExamplesRecipe = ExamplesRecipe()
    loss: LossRecipe = LossRecipe()
    lora: LoraRecipe = LoraRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    run: RunRecipe = RunRecipe()

    def learnt_from(self) -> dict[str, Any]:
        """Return what decides the adapter's weights, as JSON values."""
        return self.model_dump(
            mode="json",
            exclude={
                "run": {"mini_batch_tokens", "checkpoint_every", "tensorboard"},
                "evaluation": True,
            },
        )


def read_tune_recipe(path: Path) -> TuneRecipe:
    """Read a recipe; paths in it are taken from where it stands.

    Raises:
        MissingError: If there is no such file.
        InputError: If it is not YAML (with the line), or a field is wrong (with its name).
    """
    if not path.is_file():
        raise MissingError(f"expected a recipe at {path}, found none")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"expected YAML in UTF-8 in {path}, found other bytes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", in line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "something else"
        raise InputError(f"expected YAML in {path}, found{line}: {problem}") from None
    recipe = validated(TuneRecipe, content, path)
    return _from(path.parent, recipe)


def _from(folder: Path, recipe: TuneRecipe) -> TuneRecipe:
    """Return the recipe with its paths, which are relative to a folder, made usable."""

    def placed(data: tuple[DataRecipe, ...]) -> tuple[DataRecipe, ...]:
        return tuple(
            data_recipe.model_copy(update={"path": folder / data_recipe.path})
            for data_recipe in data
        )

    base = folder / recipe.base
    return recipe.model_copy(
        update={
            "base": str(base) if base.is_dir() else recipe.base,
            "prompts": folder / recipe.prompts,
            "data": placed(recipe.data),
            "evaluation": recipe.evaluation.model_copy(
                update={"data": placed(recipe.evaluation.data)}
            ),
        }
    )
