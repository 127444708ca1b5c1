"""Parts that read training data once, before training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import Part, parse_parts


class Centered(nn.Module):
    """Subtracts the mean of the training samples that it was given."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.int64))
        self.given: list[Any] = []

    def prepare(self, batches: Any) -> None:
        self.given = list(batches)
        self.mean.copy_(torch.cat([x for [x] in self.given]).mean(0))
        self.prepared.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


BATCHES = [{"x": torch.arange(8.0).reshape(4, 2)}, {"x": torch.arange(8.0, 12.0).reshape(2, 2)}]


def network(parts: dict[str, Any], example: Any = BATCHES[0]) -> HybridNetwork:
    return build(parse_parts(parts), 2, example)


def test_a_part_is_prepared_once_with_all_samples_in_their_order():
    built = network({"x": Centered(2)})
    assert built.unprepared() == ["x"]
    built.prepare(lambda: BATCHES)
    assert torch.equal(torch.cat([x for [x] in built.parts["x"].given]), torch.arange(12.0).reshape(6, 2))
    assert built.unprepared() == []
    built.parts["x"].given = []
    built.prepare(lambda: BATCHES)
    assert built.parts["x"].given == []


def test_a_part_behind_another_gets_what_that_one_returns_in_eval_mode():
    built = network(
        {"front": {"module": nn.Dropout(0.5), "input": "x"}, "own": {"module": Centered(2), "input": "front"}}
    )
    built.train()
    built.prepare(lambda: BATCHES)
    assert torch.equal(built.parts["own"].given[0][0], BATCHES[0]["x"])
    assert built.training
    assert built.parts["front"].training


def test_of_two_that_read_each_other_the_first_is_prepared_before_the_second():
    built = network(
        {"first": {"module": Centered(2), "input": "x"}, "second": {"module": Centered(2), "input": "first"}}
    )
    built.prepare(lambda: BATCHES)
    assert torch.allclose(built.parts["second"].mean, torch.zeros(2))


def test_samples_that_lack_the_part_are_not_shown_to_it():
    example = {**BATCHES[0], "y": torch.ones(4, 1), "present/x": torch.tensor([True, False, True, True])}
    built = network({"x": Centered(2), "y": "torch.nn.Identity"}, example)
    built.prepare(lambda: [example])
    [[given]] = built.parts["x"].given
    assert torch.equal(given, BATCHES[0]["x"][[0, 2, 3]])


def test_images_come_on_the_parts_own_scale():
    scale = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    image = torch.rand(2, 3, 4, 4)
    front = nn.Sequential(nn.Flatten(), Centered(48))
    front.prepared = torch.zeros((), dtype=torch.int64)
    seen: list[Tensor] = []
    front.prepare = lambda batches: seen.extend(x for [x] in batches)
    built = network({"image": {"module": front, "normalize": scale}}, {"image": image})
    built.prepare(lambda: [{"image": image}])
    assert torch.allclose(seen[0], (image - 0.5) / 0.25)


def test_a_module_that_reads_training_data_and_has_no_parameters_is_random():
    assert Part(Centered(2)).origin == "random"
    assert Part(nn.Sequential(nn.Linear(2, 2))).origin == "untrained"
    assert Part("RandomConvolutions").origin == "random"


def test_a_random_part_never_trains():
    part = parse_parts({"x": {"module": "MLP", "origin": "random"}})["x"]
    assert part.unfreeze == Part("MLP", unfreeze="never").unfreeze
    built = build({**parse_parts({"x": {"module": "MLP", "origin": "random"}})}, 2, BATCHES[0])
    assert {group["origin"] for group in built.param_groups(1.0, 0.0) if group["part"] == "x"} == {"random"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"origin": "random", "unfreeze": "10%"}, r"^model\.parts\.x\.unfreeze: a random part is drawn once"),
        ({"origin": "random", "adapter": "lora"}, r"^model\.parts\.x\.adapter: a random part is drawn once"),
        ({"origin": "random", "weights": "w.pt"}, r"^model\.parts\.x\.origin: 'random' does not go with weights"),
        (
            {"module": "RandomConvolutions", "origin": "pretrained"},
            r"^model\.parts\.x\.origin: 'pretrained' does not go with weights None",
        ),
        ({"origin": "drawn"}, r"^model\.parts\.x\.origin: unknown origin 'drawn'"),
    ],
)
def test_what_contradicts_an_origin_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_parts({"x": {"module": "MLP", **options}})


def test_an_origin_is_stored_only_if_it_was_stated():
    assert "origin" not in Part("MLP").plain()
    assert Part("MLP", origin="random").plain()["origin"] == "random"
