"""What is stored beside an engine: by what, for what and from what it was built."""

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from anna_export.choices import Target
from anna_export.engines.capability import PORTABLE, Capability, read_capability
from anna_export.engines.profiles import Profile


class BuildRecord(BaseModel):
    """How an engine was built, which refitting leaves as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Target
    version: str  # of the library
    compute_capability: str
    structure_sha256: str  # fingerprint of the graph it was built from, all but its weights
    prefix: bool  # whether it takes baked prefixes
    portable: bool
    refittable: bool
    profiles: tuple[Profile, ...]
    layers: dict[str, int]
    # the fusion report: empty where the check passed; "shortcomings" in earlier records
    fusion_report: tuple[str, ...] = Field(
        validation_alias=AliasChoices("fusion_report", "shortcomings")
    )


class EngineRecord(BuildRecord):
    """One engine's record, as its JSON file holds it."""

    driver: str | None  # CUDA version of the driver it was built under; None without a GPU
    artifact_id: str  # of what it was built from, weights included
    onnx_sha256: str  # of that one's canonical graph
    seconds: float
    sha256: str
    size_bytes: int

    @property
    def capability(self) -> Capability:
        """The GPU it is for; with `portable`, the oldest of them is PORTABLE."""
        return read_capability(self.compute_capability)

    def runs_on(self, capability: Capability) -> bool:
        """Say whether it is for a GPU."""
        return capability == self.capability or (self.portable and capability >= PORTABLE)

    def __str__(self) -> str:
        return f"{self.target} {self.version} for compute capability {self.compute_capability}"
