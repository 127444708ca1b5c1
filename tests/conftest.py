import contextlib
import functools
import gc
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from tests import processes
from tests.small import command

STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hybrid_lightning")
    choices = ("no", "also", "only")
    group.addoption("--exhaustive", choices=choices, default="no", help="run tests that are marked exhaustive")
    group.addoption("--minutes", type=float, help="start no test later")
    group.addoption("--order", type=int, metavar="SEED", help="draw the order of the tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses by the marker `exhaustive`, and draws the order."""
    choice = config.getoption("exhaustive")
    marked = [item for item in items if item.get_closest_marker("exhaustive")]
    others = [item for item in items if not item.get_closest_marker("exhaustive")]
    left_out = {"no": marked, "also": [], "only": others}[choice]
    config.hook.pytest_deselected(items=left_out)
    left_out_ids = {item.nodeid for item in left_out}
    items[:] = [item for item in items if item.nodeid not in left_out_ids]
    if (seed := config.getoption("order")) is not None:
        random.Random(seed).shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    if minutes is not None and time.monotonic() > STARTED + 60 * minutes:
        pytest.skip("no time is left")


@pytest.fixture(autouse=True, scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets the workers of a session share the process that forks."""
    own = tmp_path_factory.getbasetemp()
    processes.place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True, scope="session")
def libraries_are_no_garbage() -> None:
    """Spares every collection of garbage the million objects of the imported libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    # of a command line; afterwards, too, because what a module makes for all its tests is made before this
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of three steps, not to be changed."""
    where = tmp_path_factory.mktemp("fitted")
    with contextlib.chdir(where):
        assert command("fit", "--trainer.max_epochs", "2") == 0
    return where


@pytest.fixture(scope="session")
def elpv_is_unpacked_once() -> Iterator[None]:
    """Keeps the images of the solar cells, which take seconds to read."""
    from elpv_dataset import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "load_dataset", functools.cache(utils.load_dataset))
        yield


class Alone(LightningEnvironment):
    """One process, which needs no others to begin."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


@pytest.fixture
def ddp_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[DDPStrategy]:
    """DistributedDataParallel with one rank, in this process."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(processes.free_port()))
    yield DDPStrategy(process_group_backend="gloo", cluster_environment=Alone())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
