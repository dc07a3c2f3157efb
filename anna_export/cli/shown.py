"""How figures and verdicts of a comparison are printed."""

from typing import TYPE_CHECKING

from anna_export.console.output import print_line, print_table, size

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.verify.parity_report import Difference, TaskParity, VectorParity
    from anna_export.verify.published import Summary


def baked(artifact: "Artifact") -> str:
    """Return an artifact's prompts, and what is stored of them."""
    manifest = artifact.manifest
    entries = manifest.prefixes.values()
    tokens = sum(len(entry.ids) for entry in entries)
    size_bytes = sum(entry.size_bytes for entry in entries)
    names = ", ".join(manifest.prompts.by_name) or "none"
    return names + (f"; {tokens:,} tokens baked in {size(size_bytes)}" if entries else "")


def parity_rows(parity: "VectorParity") -> dict[str, str]:
    """Return the figures of a comparison of vectors by name."""
    thresholds = parity.thresholds
    rows = {
        "proof": parity.verdict,
        "worst cosine": f"{parity.worst_cosine:.7f}{_needed('at least', thresholds.min_cosine)}; "
        f"it is of {parity.worst_text}",
        "mean cosine": f"{parity.mean_cosine:.7f}",
        "mean loss": f"{parity.loss:.2e} (1 - cosine){_needed('at most', thresholds.max_loss)}",
        "largest difference": f"{parity.max_abs:.1e}",
    }
    if parity.batch1_worst_cosine is not None:
        rows["batch size 1"] = (
            f"worst cosine to the same text in a padded batch {parity.batch1_worst_cosine:.7f}"
            f"{_needed('at least', thresholds.batch1_min_cosine)}; largest difference "
            f"{parity.batch1_max_abs:.1e}{_needed('at most', thresholds.batch1_max_abs)}"
        )
    return rows | {
        "texts": f"{parity.texts}, the longest of {parity.longest_tokens:,} tokens, without a "
        f"prompt and with each of {len(parity.prompts)} prompts",
        "method": parity.method,
        "reference": parity.reference,
        "candidate": parity.candidate,
        "hardware": parity.hardware,
    }


def print_tasks(parity: "TaskParity") -> None:
    """Print a line for every task, and for the mean over them."""
    heads = ("task", "metric", "reference", "artifact", "difference", "95 % interval")
    rows = [
        (
            task.name + ("*" if task.trained_on else ""),
            *_difference(task.metric, task.difference),
            task.verdict,
        )
        for task in parity.tasks
    ]
    mean = ("mean over tasks", *_difference("", parity.mean), parity.verdict)
    print_table((*heads, "margin", "noise floor", "verdict"), [*rows, mean])
    if any(task.trained_on for task in parity.tasks):
        print_line("* the model was trained on data of this task")


def _difference(metric: str, difference: "Difference") -> tuple[str, ...]:
    return (
        metric,
        f"{difference.reference:.4f}",
        f"{difference.candidate:.4f}",
        f"{difference.difference:+.4f}",
        f"{difference.low:+.4f} to {difference.high:+.4f}",
        f"{difference.margin:.4f}",
        f"{difference.noise_floor:.4f}",
    )


def print_standings(summary: "Summary") -> None:
    """Print means over tasks and types, and those of published models over the same tasks."""
    kinds = list(summary.standings[0].by_type)
    print_table(
        ("model", "Borda", "over tasks", "over types", *kinds, ""),
        [
            (
                standing.model,
                "-" if standing.borda_rank is None else str(standing.borda_rank),
                f"{standing.mean_over_tasks:.4f}",
                f"{standing.mean_over_types:.4f}",
                *(_score(standing.by_type.get(kind)) for kind in kinds),
                "",
            )
            for standing in summary.standings
        ],
    )
    print_line(summary.note)


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def task_rows(parity: "TaskParity") -> dict[str, str]:
    """Return what the tasks' verdicts were measured on, by name."""
    texts = parity.texts
    return {
        "verdict": f"{parity.verdict} (tier {parity.tier})",
        "texts": f"{texts.requested:,} asked for, {texts.distinct:,} different ones with a prompt; "
        f"embedded now: {texts.embedded_reference:,} by the reference, "
        f"{texts.embedded_again:,} by it again, {texts.embedded_candidate:,} by the artifact",
        "reference": parity.reference,
        "candidate": parity.candidate,
        "hardware": parity.hardware,
    }


def _needed(bound: str, value: float | None) -> str:
    return "" if value is None else f", {bound} {value} is needed"
