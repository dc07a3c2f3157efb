"""One process of training.py: takes the same training steps our way, or sentence-transformers'.

    python -m benchmarks.holds._training_worker check|peak|ours|theirs ASK

ASK is a JSON file; the answer is printed as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from anna_train.model.loss import Losses, compute_loss
from anna_train.model.trained_model import load_model, lora_config
from anna_train.plan.assemble import Group
from anna_train.plan.batch_plan import PlannedStep
from anna_train.recipe import TuneRecipe, read_tune_recipe
from anna_train.run.gradient import GradientSettings, compute_gradient, mini_batches
from anna_train.run.prepare import Prepared, prepare
from anna_train.run.processes import Processes
from anna_train.run.step import take_step
from peft import get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _minibatch_ranges
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from anna_export.console.output import stage
from anna_export.console.quiet import quiet_libraries
from anna_export.spec import EmbeddingSpec
from benchmarks.lib.peaks import COLUMNS, INNER, ROWS

THREADS = 1
Columns = list[list[str]]


def main() -> None:
    """Do what is asked and print the answer."""
    kind, path = sys.argv[1:]
    torch.set_num_threads(THREADS)
    if kind == "peak":
        a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
        answer: Any = {
            "fp32": 2 * ROWS * INNER * COLUMNS / min(_seconds(lambda _: a @ b, range(20)))
        }
    else:
        ask = json.loads(Path(path).read_text())
        recipe = read_tune_recipe(Path(ask["recipe"]))
        with quiet_libraries():
            prepared = prepare(recipe, stage, torch.device("cpu"))
            steps = _clean_steps(prepared, ask["steps"] + 1)
            answer = {"check": _check, "ours": _time_ours, "theirs": _time_theirs}[kind](
                recipe, prepared, steps, ask
            )
    json.dump(answer, sys.stdout)


def _clean_steps(prepared: Prepared, count: int) -> list[int]:
    """Return steps in which every document that is not a query's own positive is its negative.

    Where an example answers with a document of the batch, ours takes it out and theirs does not.
    """
    clean = []
    for step in range(len(prepared.plan)):
        planned = prepared.plan[step]
        batch = prepared.assembler.batch(planned, prepared.sets[planned.data])
        if bool((batch.targets.others.sum(dim=1) == batch.documents - 1).all()):
            clean.append(step)
        if len(clean) == count:
            return clean
    raise SystemExit(f"expected {count} steps that both see alike, found {len(clean)}; add rows")


def _check(
    recipe: TuneRecipe, prepared: Prepared, steps: Sequence[int], ask: dict[str, Any]
) -> dict[str, Any]:
    """Compare both ways' token ids, loss and gradient in one step, and count what each computes."""
    planned = prepared.plan[steps[0]]
    batch = prepared.assembler.batch(planned, prepared.sets[planned.data])
    mine, model = (
        load_model(prepared.base, recipe, torch.device("cpu")),
        _their_model(prepared, recipe),
    )
    weights, theirs = mine.weights(), _trained(model)
    for (name, weight), other in zip(weights.items(), theirs, strict=True):
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        other.data.copy_(weight.data)
    settings = GradientSettings(recipe.run.mini_batch_tokens or 1)

    def loss_of(vectors: Tensor) -> Losses:
        count = batch.queries
        return compute_loss(vectors[:count], vectors[count:], batch.targets, recipe.loss)

    ours = compute_gradient(mine.inner, batch.groups, loss_of, settings, Processes())
    columns = _columns(prepared, planned)
    features = [model.preprocess(column) for column in columns]
    loss = _their_loss(model, recipe, ask["mini_batch"])(features, None)
    loss.backward()
    gradients = [
        (weight.grad, other.grad)
        for weight, other in zip(weights.values(), theirs, strict=True)
        if weight.grad is not None and other.grad is not None
    ]
    assert len(gradients) == len(weights)
    difference = max(float((a - b).norm() / b.norm()) for a, b in gradients)
    their_rows = [
        feature["input_ids"][row][feature["attention_mask"][row].bool()].tolist()
        for feature in features
        for row in range(len(columns[0]))
    ]
    rank, spec = recipe.lora.rank, prepared.base.spec
    units = mini_batches(batch.groups, recipe.run.mini_batch_tokens or 1)
    return {
        "same_ids": sorted(their_rows) == sorted(_whole_rows(batch.groups)),
        "losses": [float(ours.total.detach()), float(loss.detach())],
        "largest_gradient": max(float(b.abs().max()) for _, b in gradients),
        "gradient_difference": difference,
        "our_tokens": batch.tokens,
        "our_padded_tokens": sum(
            len(unit.prefix) + len(unit.texts) * max(map(len, unit.texts)) for unit in units
        ),
        "their_tokens": sum(map(len, their_rows)),
        "their_padded_tokens": sum(
            (end - begin) * int(feature["attention_mask"][begin:end].sum(dim=1).max())
            for feature in features
            for begin, end in _minibatch_ranges(
                feature, **{"mini_batch_size": 32, **ask["mini_batch"]}
            )
        ),
        "our_multiply_adds": sum(
            multiply_adds(spec, rank, len(group.prefix), [len(text) for text in group.texts])
            for group in batch.groups
        ),
        "their_multiply_adds": sum(multiply_adds(spec, rank, 0, [len(row)]) for row in their_rows),
    }


def _time_ours(
    recipe: TuneRecipe, prepared: Prepared, steps: Sequence[int], ask: dict[str, Any]
) -> dict[str, Any]:
    model = load_model(prepared.base, recipe, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.weights().values(), lr=recipe.optimizer.learning_rate)
    settings, processes = GradientSettings(prepared.forecast.mini_batch_tokens), Processes()

    def take(step: int) -> None:
        take_step(recipe, prepared, model, optimizer, step, settings, processes)

    return {"seconds": _seconds(take, steps)}


def _time_theirs(
    recipe: TuneRecipe, prepared: Prepared, steps: Sequence[int], ask: dict[str, Any]
) -> dict[str, Any]:
    """Time it from cut, prompted texts; what its data loader does beside is left out."""
    model = _their_model(prepared, recipe)
    weights = _trained(model)
    optimizer = torch.optim.AdamW(weights, lr=recipe.optimizer.learning_rate)
    loss_of = _their_loss(model, recipe, ask["mini_batch"])
    columns = {step: _columns(prepared, prepared.plan[step]) for step in steps}

    def take(step: int) -> None:
        features = [model.preprocess(column) for column in columns[step]]
        optimizer.zero_grad(set_to_none=True)
        loss_of(features, None).backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.optimizer.clip)
        optimizer.step()

    return {"seconds": _seconds(take, steps)}


def _seconds(take: Callable[[int], object], steps: Sequence[int]) -> list[float]:
    """Return the seconds of each step but the first, which warms up."""
    seconds = []
    for step in steps:
        started = time.perf_counter()
        take(step)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _their_model(prepared: Prepared, recipe: TuneRecipe) -> SentenceTransformer:
    model = SentenceTransformer(
        str(prepared.base.folder),
        device="cpu",
        model_kwargs={"dtype": torch.float32},
        local_files_only=True,
    )
    model.max_seq_length = prepared.base.tokeniser.framing.max_tokens
    torch.manual_seed(recipe.seed)
    model[0].model = get_peft_model(model[0].model, lora_config(recipe.lora))
    return model.train()


def _trained(model: SentenceTransformer) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _their_loss(
    model: SentenceTransformer, recipe: TuneRecipe, mini_batch: dict[str, int]
) -> CachedMultipleNegativesRankingLoss:
    return CachedMultipleNegativesRankingLoss(
        model, scale=1 / recipe.loss.temperature, **mini_batch
    )


def _columns(prepared: Prepared, planned: PlannedStep) -> Columns:
    """Return what a data set for sentence-transformers holds: prompted queries, and documents."""
    data, assembler = prepared.sets[planned.data], prepared.assembler
    cut, limits = assembler.tokeniser.truncate, assembler.limits
    queries, documents = [], []
    for choice in planned.rows:
        row = data.rows[choice.row]
        prompt = data.task.prompt(assembler.examples(data.rows[index] for index in choice.examples))
        queries.append(f"{prompt.front}{cut([row.query], limits.query)[0]}{prompt.back}")
        documents_of_row = [
            row.pos[choice.positive],
            *(row.neg[index] for index in choice.negatives),
        ]
        documents.append(cut(documents_of_row, limits.document))
    return [queries, *map(list, zip(*documents, strict=True))]


def _whole_rows(groups: Sequence[Group]) -> list[list[int]]:
    return [[*group.prefix, *text] for group in groups for text in group.texts]


def multiply_adds(spec: EmbeddingSpec, rank: int, prefix: int, lengths: Sequence[int]) -> int:
    """Count what the vectors of texts behind one prefix depend on, forward, with an adapter.

    Past the last layer's keys and values, only each text's last token counts.
    """
    tokens, texts = prefix + sum(lengths), len(lengths)
    shapes, last = spec.weight_shapes(), f"layers.{spec.layers - 1}."
    products = 0
    for name in spec.linear_modules():
        rows, columns = shapes[f"{name}.weight"]
        seen_by_all = not name.startswith(last) or name.endswith((".k_proj", ".v_proj"))
        vectors = tokens if seen_by_all else texts
        products += (rows * columns + rank * (rows + columns)) * vectors
    pairs = prefix * (prefix + 1) // 2 + sum(n * prefix + n * (n + 1) // 2 for n in lengths)
    ends = sum(prefix + n for n in lengths)
    return products + 2 * spec.q_dim * ((spec.layers - 1) * pairs + ends)


if __name__ == "__main__":
    main()
