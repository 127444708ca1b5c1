import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.small import command


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a command line that an earlier test ran


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit of two epochs of three steps, not to be changed."""
    before, where = Path.cwd(), tmp_path_factory.mktemp("fitted")
    os.chdir(where)
    try:
        assert command("fit", "--trainer.max_epochs", "2") == 0
    finally:
        os.chdir(before)
    return where
