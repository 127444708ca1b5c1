import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network import builder, scales
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.channels import adapt_channels
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import parse_parts
from tests.small import changed, command


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3, bias=True), nn.ReLU(), nn.Conv2d(5, 6, 3))


def test_one_channel_answers_as_a_gray_image_on_all_channels():
    original, adapted = small_net(), small_net()
    adapted.load_state_dict(original.state_dict())
    adapt_channels(adapted, 1)
    gray = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(adapted(gray), original(gray.expand(-1, 3, -1, -1)))


def test_more_channels_repeat_the_filters_and_keep_the_size_of_the_outputs():
    original, adapted = small_net(), small_net()
    adapted.load_state_dict(original.state_dict())
    adapt_channels(adapted, 6)
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(adapted(image.repeat(1, 2, 1, 1)), original(image))
    adapt_channels(small := small_net(), 4)
    assert small[0].weight.shape == (5, 4, 3, 3)
    assert torch.equal(small[0].weight[:, 3], small[0].weight[:, 0])


def test_a_module_without_a_first_convolution_cannot_be_adapted():
    with pytest.raises(ConfigError, match=r"^channels: Linear has no first convolution"):
        adapt_channels(nn.Linear(3, 2), 1)


def test_wrong_channels_are_an_error_with_both_remedies(folder, capsys):
    part = {"module": "ConvExtractor", "args": {"in_channels": 4, "channels": [4]}, "input": "image"}
    assert command("fit", config=changed({"init.parts": {"stem": part}})) == 2
    error = capsys.readouterr().err
    assert "model.parts.stem: the part expects 4 channels, and the input (2, 3, 16, 16) has 3." in error
    assert "let the data give 4 channels" in error
    assert "'channels: 3'" in error


def test_wrong_channels_are_told_where_the_model_itself_refuses_them_first():
    config = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 32, "image_size": 16, "patch_size": 8}
    parts = parse_parts({"image": {"module": "transformers.AutoModel", "args": {"config": config}}})
    message = (
        r"^model\.parts\.image: the part expects 3 channels, and the input \(2, 1, 16, 16\) has 1\..*'channels: 1'"
    )
    with pytest.raises(ConfigError, match=message):
        build(parts, 2, {"image": torch.rand(2, 1, 16, 16)})


def test_a_scale_does_not_spread_an_image_over_more_channels():
    parts = parse_parts({"image": {"module": small_net(), "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}})
    with pytest.raises(ConfigError, match=r"^model\.parts\.image: the part expects 3 channels, .* has 1\."):
        build(parts, 2, {"image": torch.rand(2, 1, 16, 16)})


def test_weights_of_a_part_that_was_adapted_before_are_those_of_an_adapted_part(tmp_path):
    facts = {"module": f"{__name__}.small_net", "channels": 1}
    example = {"image": torch.rand(2, 1, 16, 16)}
    first = build(parse_parts({"image": facts}), 2, example).parts["image"]
    torch.save(first.state_dict(), tmp_path / "w.pt")
    facts["weights"] = str(tmp_path / "w.pt")
    again = build(parse_parts({"image": facts}), 2, example)
    assert torch.equal(again.parts["image"][0].weight, first[0].weight)
    assert "4 of 4 tensors, 100.0%" in again.weight_reports["image"]
    facts["channels"] = 2
    with pytest.raises(ConfigError, match=r"'0\.weight \(5, 1, 3, 3\) in the file, \(5, 3, 3, 3\) in the part'"):
        build(parse_parts({"image": facts}), 2, {"image": torch.rand(2, 2, 16, 16)})


def test_a_part_with_other_channels_trains_and_loads(folder):
    part = {"module": "ConvExtractor", "args": {"in_channels": 4, "channels": [4]}, "input": "image", "channels": 3}
    assert command("fit", config=changed({"init.parts": {"stem": part}})) == 0
    assert command("test", "--ckpt_path", "last", config=changed({"init.parts": {"stem": part}})) == 0


def normalizing(normalize: object, **facts: object) -> HybridNetwork:
    parts = parse_parts({"image": {"module": nn.Conv2d(2, 3, 1), "normalize": normalize, **facts}})
    return build(parts, 2, {"image": torch.rand(2, 2, 4, 4)})


def test_images_arrive_on_the_stated_scale_and_the_state_stays_as_it_was():
    net = normalizing({"mean": [0.5, 0.25], "std": [0.1, 0.2]})
    image = torch.rand(3, 2, 4, 4)
    scaled = (image - torch.tensor([0.5, 0.25]).view(2, 1, 1)) / torch.tensor([0.1, 0.2]).view(2, 1, 1)
    expected = net.parts["image"](scaled).mean((2, 3))
    torch.testing.assert_close(net.features({"image": image})["image"], expected)
    assert not [name for name in net.state_dict() if "scales" in name]
    again = rebuild(net.options, 2, net.record)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again({"image": image}), net({"image": image}))


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        (True, r"^model\.parts\.image\.normalize: the model does not say on which scale"),
        ({"mean": [0.5, 0.5], "std": [0.1]}, r"^model\.parts\.image\.normalize: .* does not hold as many"),
        ({"mean": [0.5, 0.5], "std": [0.1, 0.0]}, r"above 0 as mean has"),
        ("yes", r"'yes' is neither true"),
    ],
)
def test_a_scale_that_is_not_known_is_an_error(normalize, message):
    with pytest.raises(ConfigError, match=message):
        normalizing(normalize)


class Published(nn.Conv2d):
    """Stands for a model of a library with weights of its own."""

    def __init__(self):
        super().__init__(3, 4, 1)

    def load_pretrained(self):
        nn.init.ones_(self.weight)


IMAGENET = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


@pytest.fixture
def library(monkeypatch):
    """`Published` is a model of timm's, which states the scale of its images."""
    monkeypatch.setattr(scales, "family_of", lambda path: "timm")
    monkeypatch.setattr(scales, "published_scale", lambda *arguments: IMAGENET)
    monkeypatch.setattr(builder, "family_of", lambda path: "timm")
    monkeypatch.setattr(builder, "timm_stages", lambda module: None)


def published(image: torch.Tensor, **facts: object) -> HybridNetwork:
    part = {"module": Published(), "weights": "pretrained", **facts}
    return build(parse_parts({"image": part}), 2, {"image": image})


def test_published_weights_get_their_scale_unless_the_part_says_no(library):
    image = torch.rand(2, 3, 4, 4)
    assert published(image).record.parts["image"].scale == IMAGENET
    assert published(image, normalize=False).record.parts["image"].scale is None
    untrained = parse_parts({"image": {"module": Published()}})
    assert build(untrained, 2, {"image": image}).record.parts["image"].scale is None


@pytest.mark.parametrize("image", [255 * torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)])
def test_images_on_another_scale_are_refused_before_the_first_step_unless_the_part_says_so(library, image):
    message = r"^model\.parts\.image\.normalize: the images of the first batch have values from .*'normalize: false'"
    with pytest.raises(ConfigError, match=message):
        published(image)
    assert published(image, normalize=False).weight_reports.get("image", "") == ""
    assert "its weights are for images in [0, 1]" in published(image, normalize=True).weight_reports["image"]


def test_a_model_that_scales_by_itself_is_told_of_other_images_and_takes_no_scale():
    module = Published()
    module.preprocessing = {"size": [8, 8]}
    image = torch.rand(2, 3, 4, 4)
    part = {"module": module, "weights": "pretrained"}
    assert build(parse_parts({"image": part}), 2, {"image": image}).weight_reports.get("image", "") == ""
    remark = build(parse_parts({"image": part}), 2, {"image": 9 * image}).weight_reports["image"]
    assert "its weights are for images in [0, 1]" in remark
    with pytest.raises(ConfigError, match=r"scales images in \[0, 1\] by itself\. Leave it out"):
        build(parse_parts({"image": {**part, "normalize": True}}), 2, {"image": image})
