"""An artifact's engines, and which of them this machine may run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anna_export.artifact.evidence import read_evidence
from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import ENGINE_FOLDER, Evidence
from anna_export.engines.capability import Capability
from anna_export.engines.record import EngineRecord
from anna_export.errors import DamagedError, InputError, MissingError
from anna_export.files.validation import validated
from anna_export.machine.gpu import Device

ENGINE: Final = ".engine"


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine's file and its record."""

    path: Path
    record: EngineRecord


def stored_engines(artifact: Artifact) -> list[StoredEngine]:
    """Return an artifact's engines, TensorRT's before TensorRT-RTX's.

    Raises:
        DamagedError: If a record is missing or not what was written.
    """
    names = sorted(
        name
        for name in artifact.manifest.evidence
        if name.startswith(f"{ENGINE_FOLDER}/") and name.endswith(ENGINE)
    )
    return [StoredEngine(artifact.folder / name, _read(artifact, name)) for name in names]


def record_name(file: str) -> str:
    """Return the name of the record beside an engine, by the name of that one's file."""
    return file.removesuffix(ENGINE) + ".json"


def _read(artifact: Artifact, name: str) -> EngineRecord:
    file = record_name(name)
    remedy = "build the engine again with anna-export build"
    content = read_evidence(artifact, file)
    return validated(
        EngineRecord, content, artifact.folder / file, error=DamagedError, remedy=remedy
    )


def find_engine(artifact: Artifact, capability: Capability) -> StoredEngine | None:
    """Return an artifact's engine for a GPU; one for just that GPU before a portable one."""
    candidates = [
        stored for stored in stored_engines(artifact) if stored.record.runs_on(capability)
    ]
    return min(candidates, key=lambda stored: stored.record.portable, default=None)


def require_engine(artifact: Artifact, device: Device) -> StoredEngine:
    """Return an artifact's engine for this machine, if it may be run as it is.

    Raises:
        MissingError: If there is none for this GPU.
        InputError: If this driver is too old for it, or a prompt was baked since.
        DamagedError: If it is not the file that was built, or was built from another graph.
    """
    capability = Capability(*device.capability)
    remedy = "build it again with anna-export build, or choose `backend` ort"
    stored = find_engine(artifact, capability)
    if stored is None:
        others = ", ".join(str(other.record) for other in stored_engines(artifact)) or "none"
        raise MissingError(
            f"expected an engine in {artifact.folder} for this GPU's compute capability "
            f"{capability}, found {others}; build one with anna-export build, or choose "
            "`backend` ort"
        )
    record, manifest = stored.record, artifact.manifest
    evidence = manifest.evidence[stored.path.relative_to(artifact.folder).as_posix()]
    _require_whole(stored, evidence, remedy)
    if {record.artifact_id, evidence.covers} != {manifest.artifact_id}:
        raise DamagedError(
            f"expected {stored.path} built from this artifact's graph and weights, found one built "
            f"from another's; {remedy}"
        )
    if record.driver is not None and _version(device.driver) < _version(record.driver):
        raise InputError(
            f"expected a driver of CUDA {record.driver} or newer, under which {stored.path} was "
            f"built, found {device.driver}; update the driver, or {remedy}"
        )
    if manifest.prefixes and not record.prefix:
        raise InputError(
            f"expected an engine that takes prefixes, found {stored.path}, built before a prompt "
            f"was baked; {remedy}"
        )
    return stored


def _require_whole(stored: StoredEngine, evidence: Evidence, remedy: str) -> None:
    """Look at an engine's size; a full check compares its hash, like that of large weights."""
    size = stored.path.stat().st_size if stored.path.is_file() else 0
    if size != evidence.size_bytes or evidence.sha256 != stored.record.sha256:
        raise DamagedError(
            f"expected {stored.path} of {evidence.size_bytes} bytes and its own record, found "
            f"another file or record ({size} bytes); {remedy}"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
