"""Writes the page, into the artifact or wherever it is wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from anna_export.artifact.evidence import add_evidence
from anna_export.files.atomic import write_text
from anna_export.report.facts import read_all_facts
from anna_export.report.page import page

REPORT_FILE: Final = "report.html"


def report(folders: Sequence[Path], out: Path | None) -> Path:
    """Write a page about artifacts and return where it is.

    Args:
        folders: The artifacts.
        out: The file; None for report.html in the first artifact, where it is listed.

    Raises:
        AnnaError: If one is no artifact, or damaged.
    """
    artifacts = read_all_facts(folders)
    text = page(artifacts)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
        return out
    add_evidence(artifacts[0].artifact, REPORT_FILE, text)
    return artifacts[0].artifact.folder / REPORT_FILE
