import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.network.registry import resolve
from tests.backbones.models import BACKBONES
from tests.backbones.test_matrix import batch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def network(part: dict[str, object], channels: int = 3, size: int = 64) -> HybridNetwork:
    return build(parse_parts({"image": part}), 3, {"image": torch.rand(2, channels, size, size)})


def timm(name: str, **facts: object) -> dict[str, object]:
    return {"module": "timm.create_model", "args": {"model_name": name}, **facts}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient_so_that_several_ranks_can_train(name):
    key, part, _ = BACKBONES[name]
    example = batch()
    net = build(parse_parts({"tower": {**part, "input": key}}), 3, example)
    net(example).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("model", "features"),
    [
        ("googlenet", 1024),
        ("mobilenet_v3_small", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("regnet_y_400mf", 440),
        ("mnasnet0_5", 1280),
        ("efficientnet_b0", 1280),
        ("swin_t", 768),
        ("squeezenet1_0", 512),
        ("segmentation.lraspp_mobilenet_v3_large", 21),
    ],
)
def test_torchvision_classifiers_give_features_instead_of_classes(model, features):
    net = network({"module": f"torchvision.models.{model}"})
    assert net.eval().features({"image": torch.rand(2, 3, 64, 64)})["image"].shape == (2, features)


def test_timm_models_come_without_their_classifier_unless_asked_for():
    image = {"image": torch.rand(2, 3, 64, 64)}
    assert network(timm("resnet10t")).features(image)["image"].shape == (2, 512)
    part = timm("resnet10t")
    part["args"]["num_classes"] = 7
    assert network(part).features(image)["image"].shape == (2, 7)


def test_a_model_function_of_timm_is_as_good_as_its_name():
    image = {"image": torch.rand(2, 3, 64, 64)}
    net = network({"module": "timm.models.resnet10t"}).eval()
    again = rebuild(net.options, 3, net.record, trust=()).eval()
    again.load_state_dict(net.state_dict())
    assert list(again.record.parts["image"].stages) == BACKBONES["timm-resnet"][2]
    assert net.features(image)["image"].shape == (2, 512)
    assert torch.equal(again(image), net(image))
    with pytest.raises(ConfigError, match="outside the allowed places"):
        resolve("timm.models.load_checkpoint", "here", trust=())


@pytest.mark.parametrize(
    ("part", "mean"),
    [
        (timm("vit_tiny_patch16_224"), [0.5, 0.5, 0.5]),
        (timm("resnet18"), [0.485, 0.456, 0.406]),
        ({"module": "torchvision.models.resnet18"}, [0.485, 0.456, 0.406]),
    ],
)
def test_a_model_brings_the_scale_of_its_images_and_can_apply_it(part, mean):
    net = network({**part, "normalize": True}, size=224)
    scale = net.record.parts["image"].scale
    assert scale["mean"] == mean
    image = torch.rand(2, 3, 224, 224)
    scaled = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(scale["std"]).view(3, 1, 1)
    net.eval()
    torch.testing.assert_close(net.features({"image": image})["image"], net.parts["image"](scaled))


def test_a_gray_image_needs_a_word_and_then_works():
    with pytest.raises(ConfigError, match=r"^model\.parts\.image: the part expects 3 channels, and .* has 1\."):
        network(timm("resnet10t"), channels=1)
    net = network(timm("resnet10t", channels=1, normalize=True), channels=1)
    assert net.features({"image": torch.rand(2, 1, 64, 64)})["image"].shape == (2, 512)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            timm("resnet81"),
            r"^model\.parts\.image\.args\.model_name: unknown model 'resnet81'\. Did you mean 'resnet18'",
        ),
        (
            timm("resnet18.a1_inlk"),
            r"^model\.parts\.image\.args\.model_name: unknown weights 'resnet18\.a1_inlk'\. Did you mean "
            r"'resnet18\.a1_in1k'",
        ),
        (
            {"module": "torchvision.models.get_model", "args": {"name": "resnet18"}},
            r"^model\.parts\.image\.module: .* hides which model it makes\. Write .*torchvision\.models\.resnet18",
        ),
        (timm("hf-hub:someone/model"), r"^model\.parts\.image\.args\.model_name: 'hf-hub:someone/model' is a place"),
        ({"module": "torchvision.models.resnet19"}, r"^model\.parts\.image\.module: .* Did you mean 'resnet1[0-9]"),
    ],
)
def test_an_unknown_backbone_is_told_with_the_closest_name(part, message):
    with pytest.raises(ConfigError, match=message):
        network(part)


def test_adapters_go_into_a_library_model_and_only_they_train():
    net = network(timm("resnet10t", adapter={"kind": "lora", "r": 2}))
    trained = {name for name, p in net.parts["image"].named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert list(net.record.parts["image"].stages) == BACKBONES["timm-resnet"][2]


@pytest.mark.parametrize(
    ("part", "cache"), [({"module": "torchvision.models.resnet18"}, "torch_here"), (timm("resnet10t"), "hub_here")]
)
def test_weights_that_cannot_be_fetched_name_the_cache_and_the_remedy(part, cache, monkeypatch, tmp_path):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_here"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub_here"))
    with pytest.raises(ConfigError, match=rf"^model\.parts\.image\.args: .*prefetch --config.*{cache}"):
        network({**part, "weights": "pretrained"})
