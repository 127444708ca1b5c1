import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from tests.network.towers import build, two_towers


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_the_output_equals_the_parts_called_by_hand():
    parts, batch = two_towers()
    network = build(parts, batch).eval()
    module = network.parts
    upper = module["upper"](module["stem"](batch["image"])).mean((2, 3))
    expected = module["head"](module["fusion"]({"table": module["table"](batch["table"]), "upper": upper}))
    torch.testing.assert_close(network(batch), expected)


def test_one_live_module_may_be_two_parts():
    shared = nn.Linear(4, 5)
    batch = {"left": torch.randn(2, 4), "right": torch.randn(2, 4)}
    network = build({"left": shared, "right": shared}, batch)
    assert [g["name"] for g in network.param_groups(1.0, 0.0)][:2] == ["left", "left/no_decay"]
    assert torch.equal(network.features(batch)["right"], shared(batch["right"]))


def test_every_parameter_is_in_one_group_and_none_of_a_part_without_parameters():
    network = build(
        {"image": nn.Flatten(), "table": Tied()}, {"image": torch.randn(2, 3, 4), "table": torch.randn(2, 4)}
    )
    params = [p for group in network.param_groups(1.0, 0.1) for p in group["params"]]
    assert len(params) == len({id(p) for p in params})
    assert {id(p) for p in params} == {id(p) for p in network.parameters()}
    assert {g["part"] for g in network.param_groups(1.0, 0.1)} == {"table", "fusion", "head"}


def test_groups_have_the_rates_of_their_parts_and_stages():
    facts = {"module": "MLP", "args": {"hidden": [4, 4, 4]}, "lr_scale": 0.5, "layer_decay": 0.1, "weight_decay": 0.2}
    groups = build({"table": facts}, {"table": torch.randn(2, 4)}).param_groups(lr=2.0, weight_decay=0.1)
    found = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups if "no_decay" not in g["name"]}
    expected = {"table.layer0": (0.01, 0.2), "table.layer1": (0.1, 0.2), "table.layer2": (1.0, 0.2), "head": (2.0, 0.1)}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values)


def test_a_cached_output_replaces_the_forward_of_its_part_and_of_what_it_alone_reads():
    parts, batch = two_towers()
    network = build(parts, batch).eval()
    stem = network.parts["stem"](batch["image"])
    cached = {"upper": network.parts["upper"](stem)}
    without_image = {"table": batch["table"]}
    assert torch.equal(network({**without_image, "cached": cached}), network(batch))
    assert torch.equal(network.features(without_image, cached)["upper"], network.features(batch)["upper"])
    assert torch.equal(network.features(without_image, {"stem": stem})["upper"], network.features(batch)["upper"])


def test_cached_tokens_are_pooled_without_what_the_mask_leaves_out():
    text = {"values": torch.randint(0, 9, (2, 5)), "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    part = {"module": "SequenceTransformer", "args": {"vocabulary": 9, "width": 8}}
    network = build({"text": part}, {"text": text}).eval()
    cached = {"text": network.parts["text"](**text)}
    assert torch.equal(network.features({"text": text}, cached)["text"], network.features({"text": text})["text"])


def test_outputs_without_single_parts_stand_beside_the_joint_ones():
    parts, batch = two_towers()
    network = build(parts, batch).eval()
    joint, without = network.forward_and_without(batch)
    assert torch.equal(joint, network(batch))
    assert without.keys() == {"table", "upper"}


class Detached(nn.Module):
    """Passes no gradient to what it reads, and has weights of its own."""

    passes_gradient = False

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x.detach())


def front(**options) -> dict:
    return {
        "front": {"module": nn.Linear(4, 4), "input": "x", **options},
        "middle": {"module": nn.Tanh(), "input": "front"},
        "last": {"module": Detached(), "input": "middle"},
    }


def test_a_part_that_no_gradient_can_reach_must_not_be_meant_to_train():
    batch = {"x": torch.randn(2, 4)}
    with pytest.raises(ConfigError, match=r"^model\.parts\.front\.unfreeze: .*'last'.*unfreeze: never.*origin: random"):
        build(front(), batch)
    for stated in ({"unfreeze": "never"}, {"origin": "random"}):
        build(front(**stated), batch)
    build({**front(), "aside": {"module": "MLP", "input": "front"}}, batch)


@pytest.mark.parametrize("module", ["RandomConvolutions", "RandomConvolutions2d", "RandomFourierFeatures"])
def test_random_features_say_whether_they_pass_gradient(module):
    shape = {"RandomConvolutions": (2, 1, 20), "RandomConvolutions2d": (2, 1, 20, 20)}.get(module, (2, 6))
    values = torch.randn(shape).requires_grad_()
    made = build({"x": {"module": module}}, {"x": values.detach()}).parts["x"]
    assert made(values).requires_grad == getattr(made, "passes_gradient", True)


@pytest.mark.parametrize("options", [{"unfreeze": "never"}, {"lr_scale": 0.5}, {"batch_norm": "train"}])
@pytest.mark.parametrize("is_first", [True, False])
def test_one_module_in_two_parts_with_contradicting_options_is_refused(options, is_first):
    shared = nn.Linear(4, 5)
    one, other = {"module": shared, **options}, {"module": shared}
    parts = {"left": one, "right": other} if is_first else {"left": other, "right": one}
    with pytest.raises(ConfigError, match=f"'left' and 'right' share parameters.*'{next(iter(options))}'"):
        build(parts, {"left": torch.randn(2, 4), "right": torch.randn(2, 4)})


def test_a_weight_that_a_part_shares_with_the_head_is_compared_too():
    shared = nn.Linear(3, 3)
    parts = {"x": {"module": shared, "unfreeze": "never"}, "head": {"module": shared}}
    with pytest.raises(ConfigError, match="'x' and 'head' share parameters"):
        build(parts, {"x": torch.randn(2, 3)})
