"""One model on one mteb task: mteb's own score, and what it is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mteb
import numpy as np

from anna_export.console.quiet import quiet_libraries
from anna_export.verify.estimators import Sample
from anna_export.verify.estimators import score as estimated
from anna_export.verify.mteb_model import MtebModel
from anna_export.verify.samples import read_samples, require_same_score, require_supported
from anna_export.verify.task_data import TaskSource, load

# What mteb's loaders hand over at once; how texts are batched is the encoder's business.
_LOADED_TEXTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's result on one task.

    Args:
        score: The main score, by mteb.
        samples: By subset, what it is made of.
    """

    score: float
    samples: dict[str, Sample]


def score(source: TaskSource, model: MtebModel, results: Path) -> Scored:
    """Evaluate a model on a task.

    Args:
        source: The task.
        model: The model.
        results: mteb's cache, which its result file and the model's description go into.

    Raises:
        MissingError: If the task's data is not here and cannot be had.
    """
    predictions: dict[str, dict[str, Any]] = {}

    def keep(values: Any, _: object, __: Path, hf_split: str, hf_subset: str) -> None:
        predictions.setdefault(hf_subset, {})[hf_split] = values

    with quiet_libraries():
        task = load(source)
        # mteb would write them as JSON, which takes longer than to search
        task._save_task_predictions = keep
        evaluated = mteb.evaluate(
            model,
            task,
            cache=mteb.ResultCache(results),
            overwrite_strategy="always",
            prediction_folder=results,
            encode_kwargs={"batch_size": _LOADED_TEXTS, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
        (result,) = evaluated.task_results
        samples = read_samples(task, source.build(), predictions)
        (split,) = task.eval_splits
        for entry in result.scores[split]:
            sample = samples[entry["hf_subset"]]
            require_same_score(source.name, estimated(sample.estimator), entry["main_score"])
        task.unload_data()
    return Scored(result.get_score(), samples)


def ask(source: TaskSource, model: MtebModel) -> None:
    """Have a task ask a model for all of its vectors, and do nothing with its score.

    Raises:
        MissingError: If the task's data is not here and cannot be had.
        UnsupportedError: If the task's kind of score is not known.
    """
    with quiet_libraries(), np.errstate(all="ignore"):
        require_supported(source.build())
        task = load(source)
        mteb.evaluate(
            model,
            task,
            cache=None,
            encode_kwargs={"batch_size": _LOADED_TEXTS, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
        task.unload_data()
