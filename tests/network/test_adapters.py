import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.demo.efficientnet_lite import EfficientNetLite0
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.adapters import KINDS, AdapterSpec, add_adapter, merge_adapters
from tests import small
from tests.small import changed, command

TOWER = {"module": "ConvExtractor", "args": {"channels": [4, 6], "norm": True}, "input": "image", "unfreeze": "1 steps"}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_answer_as_they_did_beside_the_weights(kind):
    module, value = net(), torch.randn(3, 4)
    plain = copy.deepcopy(module).state_dict()
    add_adapter(module, AdapterSpec.parse(kind))
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert trainable
    for parameter in trainable:
        nn.init.normal_(parameter)
    expected = module(value)
    merge_adapters(module)
    assert module.state_dict().keys() == plain.keys()
    assert not torch.allclose(net()(value), expected)
    torch.testing.assert_close(module(value), expected)


def test_a_new_lora_changes_nothing_yet():
    module, value = net(), torch.randn(3, 4)
    before = module(value)
    add_adapter(module, AdapterSpec("lora", {"r": 2}))
    assert torch.equal(module(value), before)


def test_a_layer_that_trained_beside_the_adapters_is_plain_after_the_merge():
    module, value = net(), torch.randn(3, 4)
    names = module.state_dict().keys()
    add_adapter(module, AdapterSpec("lora", {"target_modules": ["0"], "modules_to_save": ["2"]}))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    expected = module(value)
    merge_adapters(module)
    assert module.state_dict().keys() == names
    torch.testing.assert_close(module(value), expected)


def test_layers_whose_owner_reads_their_weights_are_left_alone():
    module = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 3))
    add_adapter(module, AdapterSpec("lora"))
    assert {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad} == {"1"}
    with pytest.raises(ConfigError, match=r"^TransformerEncoderLayer has no linear layer"):
        add_adapter(nn.TransformerEncoderLayer(4, 2, 8), AdapterSpec("lora"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lorra", r"^model\.parts\.image\.adapter: unknown kind 'lorra'\. Did you mean 'lora'\?"),
        ({"r": 8}, r"^model\.parts\.image\.adapter: \{'r': 8\} is neither a kind"),
        ({"kind": "lora", "rank": 8}, r"^model\.parts\.image\.adapter: unknown argument 'rank'"),
        ({"kind": "lora", "target_modules": ["nothing"]}, r"^model\.parts\.image\.adapter: peft refuses lora"),
        (
            {"kind": "lora", "megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            r"^model\.parts\.image\.adapter: unknown argument 'megatron_config'",
        ),
    ],
)
def test_an_impossible_adapter_is_an_error_with_its_place(given, message):
    model = HybridClassifier(num_classes=3, parts={"image": {"module": "MLP", "adapter": "lora"}})
    with pytest.raises(ConfigError, match=message):
        HybridClassifier(num_classes=3, parts={"image": {"module": "MLP", "adapter": given}}).build(
            {"image": torch.randn(2, 4)}
        )
    assert model.parts["image"].adapter == AdapterSpec("lora")


def test_convolutions_that_peft_cannot_make_are_an_error_with_a_reason():
    with pytest.raises(ConfigError, match=r"^peft refuses lora: AssertionError\. Its arguments are"):
        add_adapter(EfficientNetLite0(), AdapterSpec("lora"))


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"^lora needs peft: .*\. Install it with: pip install 'hybrid_lightning\[peft\]'"
    ):
        add_adapter(net(), AdapterSpec("lora"))


def test_only_the_adapters_of_a_part_train_and_only_from_its_unfreezing_on(folder):
    config = changed({"init.parts": {"tower": {**TOWER, "adapter": {"kind": "lora", "r": 2}, "layer_decay": 0.5}}})
    assert command("fit", config=config) == 0
    (path,) = Path("runs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    names = checkpoint["hybrid_lightning"]["groups"]
    adapters = {g["name"]: g for g in groups if g["part"] == "tower" and not g["fixed"]}
    assert {name for group in adapters for name in names[group]} == {
        n.removeprefix("network.") for n in checkpoint["state_dict"] if "lora_" in n
    }
    assert {g["unfrozen_at"] for g in adapters.values()} == {1}
    assert adapters["tower.block0"]["lr_factor"] == 0.5 * adapters["tower.block1"]["lr_factor"]
    torch.manual_seed(0)
    model = HybridClassifier.load_from_checkpoint(path)
    trained = {n: p for n, p in model.network.named_parameters() if "lora_B" in n}
    assert len(trained) == 2
    assert all(p.abs().sum() > 0 for p in trained.values())
    assert command("test", "--ckpt_path", "last", config=config) == 0


def test_the_weights_and_statistics_under_adapters_stay_bit_equal():
    part = {"module": "ConvExtractor", "args": {"channels": [4], "norm": True}, "adapter": "lora"}
    model = HybridClassifier(num_classes=3, parts={"image": part})
    data = small.loader({"image": torch.randn(24, 2, 8, 8), "target": torch.arange(24) % 3})
    model.build(next(iter(data)))
    before = {n: t.clone() for n, t in model.network.parts["image"].state_dict().items()}
    small.trainer(max_epochs=2).fit(model, data)
    after = model.network.parts["image"].state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if "lora_" in n}


LORA = {**TOWER, "adapter": {"kind": "lora", "r": 2}}
PLAIN = {**TOWER, "unfreeze": "never"}


def last(name: str) -> str:
    return str(next((Path("runs") / name).rglob("last.ckpt")))


def test_a_new_run_puts_adapters_on_the_weights_of_a_plain_one(folder, capsys):
    assert command("fit", "--name", "plain", config=changed({"init.parts": {"tower": TOWER}})) == 0
    start = changed({"init.parts": {"tower": LORA}, "init.init_from": last("plain")})
    assert command("fit", "--name", "adapted", config=start) == 0
    assert "  tower: 12 of 12 tensors, 100.0% of the values.\n" in capsys.readouterr().out
    plain, adapted = (torch.load(last(n), weights_only=True)["state_dict"] for n in ("plain", "adapted"))
    assert torch.equal(
        adapted["network.parts.tower.block1.0.base_layer.weight"], plain["network.parts.tower.block1.0.weight"]
    )


def test_adapters_that_a_plain_part_would_lose_are_told_with_what_merges_them(folder, capsys):
    assert command("fit", "--name", "adapted", config=changed({"init.parts": {"tower": LORA}})) == 0
    remedy = "export --config ... --ckpt_path ... --format safetensors"
    for parts, more in (
        ({"tower": TOWER}, {"init.init_from": last("adapted")}),
        ({"tower": {**TOWER, "weights": last("adapted")}}, {}),
    ):
        assert command("fit", "--name", "plain", config=changed({"init.parts": parts, **more})) == 2
        assert remedy in capsys.readouterr().err
    words = ["--ckpt_path", last("adapted"), "--part", "tower", "--output", "tower.safetensors"]
    assert main(["export_part", *words]) == 2
    assert remedy in capsys.readouterr().err
    output = ["--output", "net.safetensors", "--format", "safetensors"]
    config = changed({"init.parts": {"tower": LORA}})
    assert command("export", "--ckpt_path", last("adapted"), *output, config=config) == 0
    parts = {"tower": {**PLAIN, "weights": "net.safetensors"}}
    assert command("fit", "--name", "plain", config=changed({"init.parts": parts})) == 0
    model = HybridClassifier.load_from_checkpoint(last("adapted")).network.parts["tower"]
    merge_adapters(model)
    again = HybridClassifier.load_from_checkpoint(last("plain")).network.parts["tower"]
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())


def test_a_live_module_is_adapted_once_however_often_a_network_is_built_of_it():
    model = HybridClassifier(num_classes=3, parts={"x": {"module": net(), "adapter": "lora"}})
    first = list(model.build({"x": torch.randn(2, 4)}).state_dict())
    assert list(model.build({"x": torch.randn(2, 4)}).state_dict()) == first
