"""What computes, where and how: the names that a user chooses from."""

from enum import StrEnum
from typing import Final

BACKENDS: Final = ("auto", "ort", "trt", "pytorch")
DEVICES: Final = ("auto", "cpu", "cuda")


# A Ray cluster that is started on this machine.
LOCAL: Final = "local"


class Target(StrEnum):
    """What builds an engine."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
