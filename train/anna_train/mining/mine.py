"""Mine hard negatives: retrieve, rerank, keep what is far enough below the positives."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anna_export.files.atomic import staged_file
from anna_export.files.hashing import file_sha256
from anna_export.files.work_folder import work_folder
from anna_export.progress import Stage, no_stage
from anna_train.data.rows import RowFile
from anna_train.mining.collection import collect
from anna_train.mining.margin import RULES
from anna_train.mining.negatives import Counts, choose
from anna_train.mining.parts import PART_ROWS, line_of, parts, require_output
from anna_train.mining.settings import MiningSettings
from anna_train.mining.teacher import Teacher, open_teacher, repeatable


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What was mined.

    Args:
        out: The file of rows.
        counts: Over all rows.
        texts: Size of the corpus.
        resumed: Rows that an earlier run had done.
        restarted: Whether an earlier run with other settings was dropped.
    """

    out: Path
    counts: Counts
    texts: int
    resumed: int
    restarted: bool

    @property
    def mean_negatives(self) -> float:
        """Negatives a row."""
        return self.counts.negatives / self.counts.rows

    @property
    def dropped(self) -> dict[str, float]:
        """The share of candidates that each rule dropped."""
        counts = (self.counts.by_margin, self.counts.by_relative, self.counts.by_spread)
        total = max(self.counts.candidates, 1)
        return {str(rule): count / total for rule, count in zip(RULES, counts, strict=True)}

    @property
    def first(self) -> dict[str, float]:
        """The share of rows whose positive each ranking puts first."""
        counts = self.counts
        first_counts = (counts.bm25_first, counts.dense_first, counts.reranker_first)
        names = ("bm25", "dense", "reranker")
        return {name: count / counts.rows for name, count in zip(names, first_counts, strict=True)}


def mine(
    rows: Path,
    out: Path,
    settings: MiningSettings | None = None,
    *,
    overwrite: bool = False,
    stage: Stage = no_stage,
) -> MiningReport:
    """Give every row hard negatives, with where each came from.

    A negative's origin stands at its place in the row's "mined", what was decided for the query
    in "mining". Where there is a reranker its logits are the row's scores, else it has none.

    Args:
        rows: The file of rows.
        out: The file to write.
        settings: How; the defaults where not given.
        overwrite: Replace `out` if it exists.
        stage: Shows what takes long.

    Raises:
        AnnaError: If an input cannot be used, or `out` cannot be written.
    """
    settings = settings or MiningSettings()
    require_output(out, rows, overwrite=overwrite)
    source = RowFile(rows)
    collection = collect(source, corpus=settings.corpus, replace=settings.replace)
    counts, resumed = Counts(), 0
    with (
        work_folder(out, _state(rows, settings)) as work,
        repeatable(settings.teacher),
        open_teacher(
            settings.teacher, source, collection, work, stage, replace=settings.replace
        ) as teacher,
    ):
        names = []
        with stage("mine", "rows") as progress:
            for start, end in parts(len(source)):
                names.append(f"{start:012d}.jsonl")
                make = partial(_part, teacher, source, start, end, settings)
                text, resumed_part = work.text(names[-1], make)
                counts += Counts(**json.loads(text[: text.index("\n")]))
                resumed += (end - start) * resumed_part
                if progress is not None:
                    progress(end, len(source))
        with staged_file(out) as aside, aside.open("wb") as file:
            for name in names:
                part = (work.path / name).read_bytes()
                file.write(part[part.index(b"\n") + 1 :])
        restarted = work.restarted
    return MiningReport(out, counts, collection.corpus, resumed, restarted)


def _state(rows: Path, settings: MiningSettings) -> dict[str, Any]:
    corpus = settings.corpus
    return {
        "verb": "mine",
        "rows": file_sha256(rows),
        "corpus": None if corpus is None else [corpus.suffix, file_sha256(corpus)],
        "teacher": settings.teacher.state(),
        "margin": asdict(settings.margin),
        "negatives": settings.negatives,
        "from_rank": settings.from_rank,
        "sampling": settings.sampling,
        "replace": settings.replace,
        "part_rows": PART_ROWS,
    }


def _part(teacher: Teacher, rows: RowFile, start: int, end: int, settings: MiningSettings) -> str:
    """Return one line of counts, then the rows."""
    counts, mined = choose(teacher.judge(rows[start:end]), teacher.collection.texts, settings)
    return "".join(f"{line}\n" for line in (json.dumps(asdict(counts)), *map(line_of, mined)))
