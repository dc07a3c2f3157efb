"""What bench is asked to time, and against what."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anna_export.artifact.folder import Artifact
from anna_export.bench.baselines import find_baseline
from anna_export.bench.flow import Plan
from anna_export.bench.opening import OpenArtifact, Opened
from anna_export.bench.workload import Shape


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How an artifact is timed.

    Args:
        batches: Texts of a batch; every one with every length.
        lengths: Tokens of a text, without its prompt.
        rates: Texts a second that arrive one by one.
        rounds: How often every shape has its turn.
        prompt: Name of the prompt; empty for none, None for the artifact's own choice.
        against: A baseline's name, a folder or a URL; None for no baseline.
        model: A model folder, for sentence-transformers.
        threads: CPU threads; None for one a core.
        backend: The artifact's.
        device: Where it runs.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    rates: tuple[float, ...]
    rounds: int
    prompt: str | None
    against: str | None
    model: Path | None
    threads: int | None
    backend: str
    device: str

    @property
    def plan(self) -> Plan:
        """What is timed."""
        shapes = [Shape(batch, length) for batch in self.batches for length in self.lengths]
        return Plan(shapes, self.rates, rounds=self.rounds)

    def open(self, artifact: Artifact) -> OpenArtifact:
        """Return what opens the artifact."""
        return OpenArtifact(artifact.folder, self.prompt, self.backend, self.device, self.threads)

    def open_baseline(self, artifact: Artifact) -> Callable[[], Opened] | None:
        """Return what opens the baseline, if there is one."""
        if self.against is None:
            return None
        prompt = artifact.manifest.prompts.find(self.prompt)
        max_tokens = artifact.manifest.framing.max_tokens
        return find_baseline(self.against, self.open(artifact), prompt, max_tokens, self.model)
