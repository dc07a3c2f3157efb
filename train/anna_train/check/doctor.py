"""Reading files through once, every rule over every row, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from anna_export.errors import InputError
from anna_export.progress import Progress
from anna_train.check import duplicates, overlap, scores, texts
from anna_train.check.findings import CorpusRule, FileRule, Finding, RowLocation, Rule, Severity
from anna_train.data.rows import RowError, RowFile

MALFORMED: Final = "malformed row"
# places of a rule that are shown to a reader
FIRST_PLACES: Final = 3


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What to check, and against what.

    Args:
        paths: Files of rows.
        model: Folder of the model to be trained, for its tokenizer; None: no text is tokenised.
        max_tokens: Its longest sequence in training; None: the model's own.
        against: Files of evaluation texts.

    Raises:
        InputError: If a file is named twice, or a limit in tokens without a tokenizer.
    """

    paths: tuple[Path, ...]
    model: Path | None = None
    max_tokens: int | None = None
    against: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise InputError("expected every file once, found one named twice")
        if self.max_tokens is not None and self.model is None:
            raise InputError("expected `model` with `max_tokens`, found none: it has the tokenizer")


@dataclass(slots=True)
class Report:
    """What was found, by rule, and what was measured, by file.

    Args:
        keeps_all: Keep every finding, not each rule's first ones alone.
    """

    keeps_all: bool = False
    rows: int = 0
    files: dict[Path, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    _by_severity: dict[Severity, int] = field(default_factory=lambda: dict.fromkeys(Severity, 0))

    @property
    def errors(self) -> int:
        """Findings for which the data should not be trained on."""
        return self._by_severity[Severity.ERROR]

    @property
    def warnings(self) -> int:
        """Findings to look at."""
        return self._by_severity[Severity.WARNING]

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if it is among its rule's first."""
        count = self.counts[finding.rule] = self.counts.get(finding.rule, 0) + 1
        self._by_severity[finding.severity] += 1
        if self.keeps_all or count <= FIRST_PLACES:
            self.findings.append(finding)

    def first(self, rule: str) -> list[Finding]:
        """Return a rule's first findings."""
        return [finding for finding in self.findings if finding.rule == rule][:FIRST_PLACES]

    def as_json(self) -> dict[str, Any]:
        """Return everything that was kept."""
        return {
            "rows": self.rows,
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": self.counts,
            "files": {str(path): figures for path, figures in self.files.items()},
            "findings": [
                {
                    "rule": finding.rule,
                    "severity": str(finding.severity),
                    "file": str(finding.path),
                    "line": finding.line,
                    "field": finding.field,
                    "message": finding.message,
                }
                for finding in self.findings
            ],
        }


def check(
    request: CheckRequest, *, keeps_all: bool = False, progress: Progress | None = None
) -> Report:
    """Put every rule to every row; a malformed row is a finding and ends nothing.

    Args:
        request: What to check.
        keeps_all: Keep every finding; a rule that finds something in every row fills memory so.
        progress: Told the rows done.

    Raises:
        MissingError: If a file or the tokenizer is missing.
        InputError: If a file has no rows, or an evaluation file cannot be read.
    """
    files = [RowFile(path) for path in request.paths]
    file_rules, corpus_rules = _file_rules(request), _corpus_rules()
    rules: list[Rule] = [*_row_rules(request), *file_rules, *corpus_rules]
    total = sum(map(len, files))
    report = Report(keeps_all)
    for file in files:
        malformed = 0
        for index in range(len(file)):
            location = RowLocation(file, index)
            report.rows += 1
            if progress is not None:
                progress(report.rows, total)
            try:
                row = file[index]
            except RowError as error:
                malformed += 1
                report.add(location.error(MALFORMED, error.field, f"{error}; correct or remove it"))
                continue
            for rule in rules:
                for finding in rule(location, row):
                    report.add(finding)
        report.files[file.path] = {"rows": len(file), "malformed_rows": malformed}
        for file_rule in file_rules:
            report.files[file.path] |= file_rule.figures()
            for finding in file_rule.end():
                report.add(finding)
    for corpus_rule in corpus_rules:
        for finding in corpus_rule.finish():
            report.add(finding)
    return report


def _row_rules(request: CheckRequest) -> list[Rule]:
    rules: list[Rule] = [
        texts.empty_texts,
        texts.positives_among_negatives,
        texts.repeated_negatives,
        texts.query_as_positive,
        texts.missing_negatives,
        texts.SpecialTokens(texts.special_tokens(request.model)),
        duplicates.RepeatedRows(),
    ]
    return [*rules, overlap.EvaluationTexts(request.against)] if request.against else rules


def _file_rules(request: CheckRequest) -> list[FileRule]:
    rules: list[FileRule] = [
        scores.NegativesAbove(),
        scores.PartlyScored(),
        scores.TeacherEntropy(),
    ]
    if request.model is None:
        return rules
    return [*rules, texts.Truncated(request.model, request.max_tokens)]


def _corpus_rules() -> list[CorpusRule]:
    return [
        duplicates.NearDuplicates(duplicates.NEAR_QUERY),
        duplicates.NearDuplicates(duplicates.NEAR_DOCUMENT),
    ]
