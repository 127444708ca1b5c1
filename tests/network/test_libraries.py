import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hybrid_lightning import HybridClassifier
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.libraries import auto_model, plain_config
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.network.registry import REGISTRY
from tests import small

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}


def text(samples: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (samples,), generator=generator)
    return {
        "input_ids": torch.randint(3, 50, (samples, 8), generator=generator),
        "attention_mask": (torch.arange(8) < lengths[:, None]).long(),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub holds one: config.json and model.safetensors."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(5)
    auto_model(config=BERT).save_pretrained(folder)
    return folder


def bert(published: Path, **facts: object) -> dict[str, object]:
    return {"module": "transformers.AutoModel", "args": {"name": str(published)}, "weights": "pretrained", **facts}


def test_a_published_model_arrives_with_its_weights_and_averages_the_tokens_of_the_text(published):
    from transformers import AutoModel

    net = build(parse_parts({"text": bert(published)}), 3, {"text": text(2)}).eval()
    original = AutoModel.from_pretrained(published)
    batch = text()
    with torch.no_grad():
        states, mask = original(**batch).last_hidden_state, batch["attention_mask"].bool()
        expected = torch.stack([state[kept].mean(0) for state, kept in zip(states, mask, strict=True)])
        torch.testing.assert_close(net.features({"text": batch})["text"], expected)


def test_every_parameter_gets_a_gradient_so_that_several_ranks_can_train(published):
    net = build(parse_parts({"text": bert(published)}), 3, {"text": text(2)})
    net({"text": text()}).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.mark.parametrize(
    ("kind", "unused"), [("clip_vision_model", "post_layernorm"), ("siglip_vision_model", "head"), ("vit", None)]
)
def test_what_the_features_do_not_depend_on_stays_out_of_training(kind, unused, tmp_path):
    part = {"module": "transformers.AutoModel", "args": {"config": {**VISION, "model_type": kind}}, "input": "pixels"}
    batch = {"pixels": {"pixel_values": torch.rand(2, 3, 32, 32)}, "target": torch.arange(2)}
    model = HybridClassifier(num_classes=3, parts={"image": part}).build(batch)
    model(batch).sum().backward()
    without = {name for name, p in model.network.named_parameters() if p.grad is None}
    assert without == set(model.network.record.fixed)
    assert all(unused in name for name in without)
    assert bool(without) == bool(unused)


def test_an_image_model_brings_the_scale_that_was_published_with_it(tmp_path):
    auto_model(config={**VISION, "model_type": "vit"}).save_pretrained(tmp_path)
    images = {"image": {"pixel_values": torch.rand(2, 3, 32, 32)}}
    part = {"module": "transformers.AutoModel", "args": {"name": str(tmp_path)}, "weights": "pretrained"}
    parts = parse_parts({"image": {**part, "normalize": True}})
    nothing = r"^model\.parts\.image\.normalize: the model does not say on which scale"
    with pytest.raises(ConfigError, match=nothing):
        build(parts, 3, images)
    processor = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "image_processor_type": "ViTImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    expected = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    assert build(parts, 3, images).record.parts["image"].scale == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "do_normalize": False}))
    with pytest.raises(ConfigError, match=nothing):
        build(parts, 3, images)


def test_a_model_that_arrives_in_eval_mode_trains_once_it_is_unfrozen(published):
    model = HybridClassifier(num_classes=3, parts={"text": bert(published, unfreeze="1 steps")})
    modes = []

    class Watch(small.pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            dropout = module.network.parts["text"].embeddings.dropout
            modes.append(dropout.training)

    data = small.loader({"text": text(), "target": torch.arange(24) % 3})
    model.build(next(iter(data)))
    assert not any(m.training for m in model.network.parts["text"].modules())
    small.trainer(callbacks=[Watch()], limit_val_batches=0).fit(model, data)
    assert modes[0] is False
    assert modes[-1] is True


def test_a_checkpoint_loads_after_the_published_folder_is_gone(published, tmp_path):
    moved = tmp_path / "published"
    published.rename(moved)
    try:
        model = HybridClassifier(num_classes=3, parts={"text": bert(moved)})
        data = small.loader({"text": text(), "target": torch.arange(24) % 3})
        trainer = small.trainer(limit_val_batches=0)
        trainer.fit(model, data)
        trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    finally:
        moved.rename(published)
    again = HybridClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    with torch.no_grad():
        assert torch.equal(again({"text": text()}), model.eval()({"text": text()}))


def test_a_config_in_a_file_can_fetch_neither_code_nor_weights():
    config = {**BERT, "auto_map": {"AutoModel": "evil--evil.Model"}, "attn_implementation": "someone/kernel"}
    config |= {"backbone_config": {"use_pretrained_backbone": True, "auto_map": {}}}
    assert plain_config(config) == {**BERT, "backbone_config": {"use_pretrained_backbone": False}}


def test_a_rebuild_asks_no_hub_whatever_the_file_names(monkeypatch):
    import huggingface_hub.constants

    seen = []
    monkeypatch.setitem(
        REGISTRY, "Asks", lambda: seen.append(huggingface_hub.constants.HF_HUB_OFFLINE) or nn.Identity()
    )
    parts = parse_parts({"text": {"module": "Asks"}})
    net = build(parts, 3, {"text": torch.ones(2, 4)})
    rebuild(parts, 3, net.record, trust=())
    assert seen == [False, True]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_record_holds_the_whole_architecture(published):
    given = {"module": "transformers.AutoModel", "args": {"config": BERT}}
    for part in (given, bert(published)):
        recorded = build(parse_parts({"text": part}), 3, {"text": text(2)}).record.parts["text"].sizes
        assert recorded["config"]["layer_norm_eps"] == 1e-12
        assert {key: recorded["config"][key] for key in BERT} == BERT


def test_a_hub_that_cannot_be_reached_is_named_with_its_cache_and_the_remedy(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub_here"))
    parts = parse_parts({"text": {"module": "transformers.AutoModel", "args": {"name": "some/model"}}})
    with pytest.raises(ConfigError, match=r"^model\.parts\.text\.args\.name: (?s:.*)prefetch --config.*hub_here"):
        build(parts, 3, {"text": text(2)})


def test_code_published_with_a_model_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    own = {**BERT, "model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    parts = parse_parts({"text": {"module": "transformers.AutoModel", "args": {"name": str(tmp_path)}}})
    with pytest.raises(ConfigError, match=r"^model\.parts\.text\.args\.name: the architecture of .* cannot be read"):
        build(parts, 3, {"text": text(2)})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, r"give 'name', or 'config' with a 'model_type'"),
        ({"config": {"model_type": "bertt"}}, r"unknown architecture 'bertt'\. Did you mean 'bert'\?"),
        ({"config": {"hidden_size": 16}}, r"unknown architecture 'None'"),
        (
            {"config": {**BERT, "num_attention_heads": 3}},
            r"^model\.parts\.text\.args: .* refuses .* multiple of .*\(3\)\.",
        ),
        ({"config": {**BERT, "hidden_size": "x"}}, r"^model\.parts\.text\.args\.config: (?s:.*)'hidden_size'"),
        ({"name": "no_such_folder/at_all"}, r"^model\.parts\.text\.args\.name: the architecture of 'no_such_folder"),
    ],
)
def test_a_model_that_is_not_there_is_an_error(args, message, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    parts = parse_parts({"text": {"module": "transformers.AutoModel", "args": args}})
    with pytest.raises(ConfigError, match=message):
        build(parts, 3, {"text": text(2)})


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("transformers.AutoModel.from_pretrained", r"transformers\.AutoModel, args"),
        ("torch.hub.load", "its file as 'weights'"),
    ],
)
def test_a_function_that_hides_which_model_it_makes_is_refused_with_what_to_write(path, instead):
    with pytest.raises(ConfigError, match=rf"^model\.parts\.text\.module: .* hides which model it makes\. .*{instead}"):
        build(parse_parts({"text": {"module": path}}), 3, {"text": text(2)})


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'hybrid_lightning\[transformers\]'"):
        auto_model(config=BERT)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_library_that_is_missing_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = {"timm": "timm.create_model", "torchvision": "torchvision.models.resnet18"}[package]
    parts = parse_parts({"image": {"module": path, "args": {"model_name": "resnet18"} if package == "timm" else {}}})
    with pytest.raises(
        ConfigError, match=rf"needs {package}\. Install it: pip install 'hybrid_lightning\[{package}\]'"
    ):
        build(parts, 3, {"image": torch.rand(2, 3, 32, 32)})
