"""What engines are asked for."""

from dataclasses import dataclass

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

    Raises:
        InputError: If the target has not what is asked of it.
    """

    target: Target
    capabilities: tuple[Capability, ...] = ()
    portable: bool = False
    refittable: bool = False
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.target is Target.TENSORRT_RTX and (self.portable or self.refittable):
            raise InputError(
                "expected --portable and --refittable with --target tensorrt, found them with "
                "tensorrt-rtx, which builds for the named GPU alone; leave them out"
            )
