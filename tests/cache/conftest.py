"""What the tests of the cache share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def in_a_folder(folder: Path) -> Path:
    """Runs are written below an empty working folder."""
    return folder


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Gives the lines that the cache has logged so far."""
    caplog.set_level("INFO")
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith("cache: ")]
