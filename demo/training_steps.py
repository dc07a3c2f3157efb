"""What the demonstration makes: the base, the training rows, the adapter."""

import json
from pathlib import Path

from anna_train.check.doctor import CheckRequest, check
from anna_train.mining.mine import mine
from anna_train.mining.score import score
from anna_train.recipe import read_tune_recipe
from anna_train.run.tune import tune

from anna_export.console.quiet import quiet_libraries
from anna_export.errors import InputError
from anna_export.progress import Stage
from demo.base_model import train_base
from demo.base_recipe import MAX_TOKENS, BaseRecipe
from demo.corpus import Corpus
from demo.tokenizer import build_tokenizer, check_exact, load_sentencepiece


def make_base(corpus: Corpus, folder: Path, recipe: BaseRecipe) -> None:
    """Hold the tokenizer to sentencepiece on every text, then train the base.

    Raises:
        InputError: If a text's token ids differ.
    """
    pieces = load_sentencepiece()
    texts = [text for pair in corpus for text in (pair.query, pair.document)]
    check_exact(build_tokenizer(pieces, MAX_TOKENS), pieces, texts)
    with quiet_libraries():
        train_base(corpus.train, folder, recipe)


def check_rows(rows: Path, heldout: Path, base: Path, path: Path, stage: Stage) -> None:
    """Write how many errors and warnings the data doctor finds.

    Raises:
        InputError: If there are errors.
    """
    with stage("check", "rows") as progress:
        report = check(CheckRequest((rows,), base, None, (heldout,)), progress=progress)
    if report.errors:
        raise InputError(
            f"expected no errors in {rows}, found {report.errors}; anna-train check {rows} "
            f"--against {heldout} names them"
        )
    counts = {"rows": report.rows, "warnings": report.counts}
    path.write_text(json.dumps(counts) + "\n", encoding="utf-8")


def mine_rows(rows: Path, path: Path, stage: Stage) -> None:
    """Write rows with hard negatives."""
    mine(rows, path, stage=stage)


def score_rows(rows: Path, path: Path, stage: Stage) -> None:
    """Write rows with soft labels."""
    score(rows, path, stage=stage)


def make_adapter(recipe: Path, folder: Path, stage: Stage) -> None:
    """Tune the adapter."""
    tune(read_tune_recipe(recipe), folder, stage)
