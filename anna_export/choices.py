"""What computes and where: the names that a user chooses from."""

from typing import Final

BACKENDS: Final = ("auto", "ort", "pytorch")
DEVICES: Final = ("auto", "cpu", "cuda")
