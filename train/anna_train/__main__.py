"""`python -m anna_train`: the same as `anna-train`, for torchrun."""

from anna_train.cli import main

main()
