"""Other libraries are silent inside the block, and what they were before after it."""

import logging
import warnings

import pytest

from anna_export.console.quiet import quiet_libraries

LOGGERS = ("huggingface_hub", "mteb", "transformers")


def test_loggers_and_bars_are_off_inside_and_as_before_after_a_failure() -> None:
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    bars = transformers.utils.logging

    def state() -> tuple[object, ...]:
        levels = (logging.getLogger(name).level for name in LOGGERS)
        return *levels, bars.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()

    before = state()
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        assert state() == (logging.ERROR, logging.ERROR, logging.ERROR, False, True)
        raise ZeroDivisionError
    assert state() == before


def test_bars_that_were_off_stay_off() -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    try:
        with quiet_libraries():
            pass
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


def test_other_warnings_pass() -> None:
    with pytest.warns(UserWarning, match="heed"), quiet_libraries():
        warnings.warn("ignore", FutureWarning, stacklevel=1)
        warnings.warn("heed", UserWarning, stacklevel=1)
