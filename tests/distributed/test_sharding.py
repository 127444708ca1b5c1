"""Sharding in one process, which is the only member of its group."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hybrid_lightning import ConfigError, named_param_groups, shard
from hybrid_lightning.distributed.sharding import sharded_like, whole, wrap_units
from hybrid_lightning.weights.safe_files import read_file
from hybrid_lightning.weights.sharded_files import read_folder, write_folder


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Blocks(nn.Module):
    """A stem, a list of blocks and a parameter outside all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)])
        self.token = nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) + self.token
        for layer in self.layers:
            x = layer(x)
        return x


def network() -> tuple[nn.ModuleDict, list[dict[str, Any]]]:
    module = nn.ModuleDict({"body": Blocks(), "head": nn.Linear(4, 2)})
    stages = {"body": {"low": ["body.stem", "body.token"], "high": ["body.layers"]}}
    return module, named_param_groups(module, {"body": "body", "head": "head"}, lr=1.0, stages=stages)


def test_each_stage_is_a_unit_and_the_rest_of_a_part_another() -> None:
    module, groups = network()
    body: Any = module["body"]
    assert wrap_units(module, groups) == [[body.stem], list(body.layers), [module["head"]], [body]]


def test_a_sharded_module_has_only_sharded_parameters(mesh: DeviceMesh) -> None:
    module, groups = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shard(module, mesh, groups)
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    assert isinstance(module["body"], FSDPModule)
    assert all(torch.equal(whole(value), before[name]) for name, value in module.state_dict().items())


def test_parameters_tied_across_units_are_refused(mesh: DeviceMesh) -> None:
    module, _ = network()
    body: Any = module["body"]
    body.layers[1].weight = body.stem.weight
    parts = {"body": "body", "head": "head"}
    stages = {"body": {"low": ["body.stem", "body.token"], "high": ["body.layers"]}}
    with pytest.raises(ConfigError, match=r"'body.stem.weight' and 'body.layers.1.weight'.*stages: \['\*'\]"):
        shard(module, mesh, named_param_groups(module, parts, lr=1.0, stages=stages))
    shard(module, mesh, named_param_groups(module, parts, lr=1.0))


def test_a_parameter_without_dimension_is_refused(mesh: DeviceMesh) -> None:
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"'scale'.*shape \(1,\).*ddp"):
        shard(module, mesh, named_param_groups(module, {"all": "*"}, lr=1.0))


def test_a_parameter_that_no_called_module_holds_is_refused(mesh: DeviceMesh) -> None:
    module = nn.ModuleList([nn.Linear(2, 2)])
    module.offset = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="'offset' belong to no module that is called"):
        shard(module, mesh, named_param_groups(module, {"all": "*"}, lr=1.0))


def test_a_state_of_another_shape_is_not_sharded(mesh: DeviceMesh) -> None:
    module, groups = network()
    shard(module, mesh, groups)
    with pytest.raises(ConfigError, match=r"Adafactor's row_var has shape \(4, 1\)"):
        sharded_like(torch.zeros(4, 1), module["head"].weight, "Adafactor's row_var")  # type: ignore[arg-type]


@pytest.fixture
def folder(mesh: DeviceMesh, tmp_path: Path) -> Path:
    module, groups = network()
    shard(module, mesh, groups)
    write_folder({"state_dict": module.state_dict(), "step": 3, "skipped": [module["head"].bias]}, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_a_folder_gives_back_what_was_written(mesh: DeviceMesh, folder: Path) -> None:
    torch.manual_seed(0)
    content, sharded = read_folder(folder), read_folder(folder, mesh, without=["skipped"])
    assert content["step"] == 3
    assert sharded.keys() == {"state_dict", "step"}
    assert content["state_dict"].keys() == sharded["state_dict"].keys() == network()[0].state_dict().keys()
    assert content["skipped"][0].equal(content["state_dict"]["head.bias"])
    for name, value in sharded["state_dict"].items():
        assert isinstance(value, DTensor)
        assert torch.equal(whole(value), content["state_dict"][name])


def test_a_folder_is_replaced_whole(mesh: DeviceMesh, folder: Path) -> None:
    write_folder({"step": 4}, folder)
    assert read_folder(folder) == {"step": 4}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", [".metadata", "meta.pt"])
def test_no_file_of_a_folder_can_run_code(file: str, folder: Path, tmp_path: Path) -> None:
    attack = Attack(tmp_path / "attacked")
    if file == "meta.pt":
        torch.save({"state_dict": attack}, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(attack))
    with pytest.raises(ConfigError, match="is refused, because loading it could run code"):
        read_file(folder)
    assert not attack.target.exists()


def test_a_folder_without_a_shard_is_refused(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(ConfigError, match="a shard is missing or damaged"):
        read_file(folder)


def test_a_whole_shard_of_another_checkpoint_is_refused(mesh: DeviceMesh, folder: Path, tmp_path: Path) -> None:
    module, groups = network()
    shard(module, mesh, groups)
    for parameter in module.parameters():
        parameter.data.add_(1)
    later = tmp_path / "later.ckpt"
    write_folder({"state_dict": module.state_dict(), "step": 4, "skipped": [module["head"].bias]}, later)
    shutil.copy(later / "__0_0.distcp", folder)
    with pytest.raises(ConfigError, match=r"'__0_0\.distcp' was written with another checkpoint"):
        read_file(folder)
    shutil.copy(later / ".metadata", folder)
    with pytest.raises(ConfigError, match=r"was written with another checkpoint, such as one of another step"):
        read_file(folder)


def test_an_older_folder_without_checksums_is_read(folder: Path) -> None:
    content = torch.load(folder / "meta.pt", weights_only=True)
    assert content.pop("shards").keys() == {"__0_0.distcp"}
    torch.save(content, folder / "meta.pt")
    assert read_file(folder)["step"] == 3
