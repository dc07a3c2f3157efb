"""A finished run, and the model card that says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from anna_export.machine.versions import installed
from anna_export.text.prompt_file import TaskFile
from anna_train.recipe import TuneRecipe

_CARD: Final = """---
library_name: peft
base_model: {base}
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, lora, embeddings]
---

# LoRA adapter for text embeddings

Rank {rank}, alpha {alpha:g}, on {targets}; trained
by anna-train for {steps:,} steps of {queries} queries, {least} to
{most} examples in front of them, in {seconds:,.0f} s.

## Data

| data | rows | sha256 |
|---|---|---|
{data}

## Evaluation

{evaluation}

## Prompts

{prompts}

## Use

```
anna-export --model BASE --adapter THIS_FOLDER --out artifact
```

The recipe is `recipe.yaml`, what every step saw `training/plan.parquet`, its losses
`training/log.csv`. Made with {versions}.
"""


@dataclass(frozen=True, slots=True)
class TuneReport:
    """A finished run.

    Args:
        steps: How many there were.
        queries: Of each step.
        data: Rows and sha256 of each data set.
        figures: By the name of an evaluation, its nDCG@10 before and after.
        seconds: What all steps took, over all runs that made it.
        first: Whether this process is the one that writes and prints.
    """

    steps: int
    queries: int
    data: Mapping[str, tuple[int, str]]
    figures: Mapping[str, tuple[float, float]]
    seconds: float
    first: bool


def adapter_card(recipe: TuneRecipe, tasks: TaskFile, report: TuneReport) -> str:
    """Return the model card as Markdown with the metadata block that model hubs read."""
    data = (f"| {name} | {rows:,} | `{sha256}` |" for name, (rows, sha256) in report.data.items())
    figures = "\n".join(
        f"| {name} | {before:.4f} | {after:.4f} |"
        for name, (before, after) in report.figures.items()
    )
    evaluation = (
        "nDCG@10 of each query over all first positives of its file.\n\n"
        f"| rows | before | after |\n|---|---|---|\n{figures}"
        if figures
        else "None was asked for."
    )
    prompts = (
        f"- `{name}`: {prompt.front!r}" + (f" … {prompt.back!r}" if prompt.back else "")
        for name, prompt in tasks.prompts().by_name.items()
    )
    return _CARD.format(
        base=recipe.base,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=", ".join(recipe.lora.targets),
        steps=report.steps,
        queries=report.queries,
        least=recipe.examples.least,
        most=recipe.examples.most,
        seconds=report.seconds,
        data="\n".join(data),
        evaluation=evaluation,
        prompts="\n".join(prompts),
        versions=", ".join(f"{name} {version}" for name, version in installed().items()),
    )
