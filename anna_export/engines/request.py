"""Which engines to build."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.choices import Target
from anna_export.engines.capability import Capability
from anna_export.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What to build.

    Args:
        target: What builds it.
        capabilities: The GPUs; none for this machine's, and where there is none for 8.9 and 12.0.
        portable: With TensorRT, for every GPU from compute capability 8.0 on, which is slower.
        refittable: With TensorRT, weights may be replaced without building again.
        memory_bytes: Most device memory that building may take; None for all there is.
        refit_from: An artifact whose refittable engine takes the new weights, with TensorRT and in
            place of building; None to build.

    Raises:
        InputError: If the target has not what is asked of it.
    """

    target: Target
    capabilities: tuple[Capability, ...] = ()
    portable: bool = False
    refittable: bool = False
    memory_bytes: int | None = None
    refit_from: Path | None = None

    def __post_init__(self) -> None:
        of_tensorrt = self.portable or self.refittable or self.refit_from is not None
        if self.target is Target.TENSORRT_RTX and of_tensorrt:
            raise InputError(
                "expected `portable`, `refittable` and `refit_from` with `target` tensorrt, found "
                "one with tensorrt-rtx, which builds for the named GPU alone; leave it out"
            )
        if self.refit_from is not None and (self.portable or self.refittable):
            raise InputError(
                "expected `refit_from` without `portable` and `refittable`, which are those of the "
                "engine refitted; leave them out"
            )
