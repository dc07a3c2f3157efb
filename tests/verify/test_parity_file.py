"""parity.json is read as it was written, by this release and by the one before."""

import json
import shutil
from pathlib import Path

import pytest

from anna_export.artifact.evidence import add_evidence
from anna_export.artifact.folder import Artifact, open_artifact
from anna_export.artifact.manifest import PARITY_FILE
from anna_export.errors import DamagedError
from anna_export.verify.parity_file import read_parity
from anna_export.verify.parity_report import Verdict

SCHEMA2 = Path(__file__).parent.parent / "data" / "schema2"


def test_what_is_read_is_written_again(artifact: Artifact) -> None:
    content = json.loads((artifact.folder / PARITY_FILE).read_text())
    report = read_parity(artifact)
    assert report is not None and json.loads(json.dumps(report.to_json())) == content
    assert content["schema_version"] == 3 and report.verdict is Verdict.PASS


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_schema_2_is_read_under_this_schemas_names(precision: str) -> None:
    artifact = open_artifact(SCHEMA2 / f"artifact-{precision}")
    content = json.loads((artifact.folder / PARITY_FILE).read_text())
    report = read_parity(artifact)
    assert report is not None and "schema_version" not in content
    old, vectors = content["vectors"], report.vectors
    thresholds = vectors.thresholds
    assert (thresholds.min_cosine, thresholds.max_loss) == (old["floor"], old["max_loss"])
    assert thresholds.batch1_min_cosine == old["alone_floor"] is not None
    assert thresholds.batch1_max_abs == old["alone_limit"]
    assert vectors.batch1_worst_cosine == old["alone_worst_cosine"] is not None
    assert vectors.batch1_max_abs == old["alone_max_abs"] is not None
    renamed = {"floor", "max_loss", "alone_floor", "alone_limit", "alone_worst_cosine"}
    plain = json.loads(json.dumps(vectors.to_json()))
    for name in old.keys() - renamed - {"alone_max_abs"}:
        assert plain[name] == old[name], name
    # the tasks are as they were
    assert json.loads(json.dumps(report.to_json()))["tasks"] == content["tasks"]
    assert report.verdict == content["verdict"]


def test_a_later_schema_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = open_artifact(Path(shutil.copytree(artifact.folder, tmp_path / "copy")))
    changed = add_evidence(copy, PARITY_FILE, json.dumps({"schema_version": 4}))
    with pytest.raises(DamagedError, match=r"expected parity schema 3 .* found 4; update"):
        read_parity(changed)
