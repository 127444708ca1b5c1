import pytest
import torch
from torch import nn

from hybrid_lightning.network.stages import discover_stages, recorded_calls
from hybrid_lightning.optim.groups import partition


class Wired(nn.Module):
    """Children registered in one order and called in another."""

    def __init__(self, children: dict[str, nn.Module], order: list[str]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.order = order

    def forward(self, x):
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


def linear(count: int) -> list[nn.Module]:
    return [nn.Linear(4, 4) for _ in range(count)]


def stages_of(module: nn.Module) -> dict[str, list[str]]:
    """The parameter names of each stage; raises if one is in two stages or in none."""
    with recorded_calls(module) as called:
        module(torch.ones(2, 4))
    names = [name for name, _ in module.named_parameters()]
    return partition(names, discover_stages(module, called))


def blocks(module: nn.Module) -> list[str]:
    return list(stages_of(module))


def test_stages_follow_the_order_of_execution_not_of_registration():
    assert blocks(Wired({"c": linear(1)[0], "a": linear(1)[0], "b": linear(1)[0]}, ["a", "b", "c"])) == ["a", "b", "c"]


def test_a_list_of_blocks_is_opened_and_ordered_by_its_calls():
    module = Wired({"blocks": nn.ModuleList(linear(11)), "stem": nn.Linear(4, 4)}, ["stem"])
    module.order += [f"blocks.{i}" for i in reversed(range(11))]
    assert blocks(module) == ["stem", *(f"blocks.{i}" for i in reversed(range(11)))]
    assert all(len(names) == 2 for names in stages_of(module).values()), "blocks.1 does not take blocks.10"


def test_a_lone_wrapper_is_opened():
    assert blocks(Wired({"model": nn.Sequential(*linear(3))}, ["model"])) == ["model.0", "model.1", "model.2"]


def test_a_block_that_is_called_again_keeps_its_first_place():
    children = {"b": linear(1)[0], "a": linear(1)[0]}
    assert blocks(Wired(children, ["a", "b", "a"])) == ["a", "b"]


def test_a_normalization_joins_the_stage_before_it_and_an_early_one_the_first():
    children = {"norm0": nn.LayerNorm(4), "a": linear(1)[0], "norm1": nn.LayerNorm(4), "b": linear(1)[0]}
    found = stages_of(Wired(children, list(children)))
    assert list(found) == ["a", "b"]
    assert found["a"] == ["norm0.weight", "norm0.bias", "a.weight", "a.bias", "norm1.weight", "norm1.bias"]


def test_parameters_outside_every_block_join_the_first_stage():
    module = Wired({"b": linear(1)[0], "a": linear(1)[0]}, ["a", "b"])
    module.token = nn.Parameter(torch.ones(4, 4))
    assert stages_of(module) == {"a": ["token", "a.weight", "a.bias"], "b": ["b.weight", "b.bias"]}


def test_a_block_that_never_runs_is_nearest_the_input():
    assert blocks(Wired({"a": linear(1)[0], "b": linear(1)[0], "unused": linear(1)[0]}, ["a", "b"])) == [
        "unused",
        "a",
        "b",
    ]


def test_a_block_of_which_only_a_child_is_called_is_placed_by_that_child():
    children = {"b": nn.Sequential(*linear(2)), "a": nn.Linear(4, 4)}
    assert blocks(Wired(children, ["a", "b.1"])) == ["a", "b"]


@pytest.mark.parametrize(
    "module", [nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4))]
)
def test_a_module_that_cannot_be_cut_is_one_stage(module):
    assert list(stages_of(module)) == ["all"]


def test_a_block_in_two_places_is_one_stage():
    shared = nn.Linear(4, 4)
    assert blocks(Wired({"a": shared, "again": shared, "b": nn.Linear(4, 4)}, ["a", "b", "again"])) == ["a", "b"]


def test_recording_leaves_no_hooks_even_after_an_error():
    module = nn.Sequential(*linear(2))
    with pytest.raises(RuntimeError), recorded_calls(module):
        module(torch.ones(2, 5))
    assert not any(m._forward_pre_hooks for m in module.modules())
