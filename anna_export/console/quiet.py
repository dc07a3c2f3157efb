"""Keeps the bars and notices of other libraries off the terminal, where ours are shown."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

_LOGGERS: Final = ("huggingface_hub", "mteb", "sentence_transformers", "transformers")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the bars and notices of those model and data libraries that are loaded."""
    with ExitStack() as stack, warnings.catch_warnings():
        # for the libraries to heed, not a user: peft asks transformers for a deprecated name
        warnings.simplefilter("ignore", FutureWarning)
        for logger in map(logging.getLogger, _LOGGERS):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        transformers: Any = sys.modules.get("transformers.utils.logging")
        if transformers is not None and transformers.is_progress_bar_enabled():
            transformers.disable_progress_bar()
            stack.callback(transformers.enable_progress_bar)
        datasets: Any = sys.modules.get("datasets")
        if datasets is not None and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
