import pytest
import torch
from torch import nn

from hybrid_lightning import HybridClassifier
from hybrid_lightning.network.image_layout import is_channels_last, prefer_channels_last
from hybrid_lightning.network.modules.convolution import ConvExtractor


class Flat(nn.Module):
    """A user's module that needs the usual layout within."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        return self.layer(image).view(len(image), -1)


def seen_by(module, image):
    found = []
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: found.append(is_channels_last(inputs[0])))
    return module(image), found


def test_convolutions_work_on_channels_that_lie_side_by_side_and_nothing_else_changes():
    torch.manual_seed(0)
    module = ConvExtractor(3, [8, 16], norm=True).eval()
    image = torch.rand(2, 3, 16, 16)
    before = module(image)
    names, strides = list(module.state_dict()), [tensor.stride() for tensor in module.parameters()]
    prefer_channels_last(module)
    after, layouts = seen_by(module, image)
    assert layouts == [True, True]
    assert after.is_contiguous()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.detach().abs().max()))
    assert names == list(module.state_dict())
    assert strides == [tensor.stride() for tensor in module.parameters()]


def test_it_is_set_once_and_for_modules_of_known_packages_alone():
    module = ConvExtractor(3, [8])
    for _ in range(2):
        prefer_channels_last(module)
    assert len(module._forward_pre_hooks) == 1
    own = Flat()
    prefer_channels_last(own)
    assert len(own._forward_pre_hooks) == 0


@pytest.mark.parametrize("module", ["ConvExtractor", Flat])
def test_parts_of_a_network_are_called_so(module):
    image = torch.rand(2, 3, 16, 16)
    model = HybridClassifier(2, parts={"image": {"module": module}}).build({"image": image, "target": torch.arange(2)})
    layouts = seen_by(model.built().parts["image"], image)[1]
    assert set(layouts) == {module != Flat}


def test_images_without_values_pass_such_as_to_count_operations():
    module = ConvExtractor(3, [8])
    prefer_channels_last(module)
    assert module.to("meta")(torch.rand(2, 3, 16, 16, device="meta")).shape[:2] == (2, 8)


def test_every_tensor_that_is_returned_has_the_usual_layout(monkeypatch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return {"out": self.layer(image), "others": [self.layer(image)]}

    monkeypatch.setattr(Two, "__module__", "torchvision.models")
    module = Two()
    prefer_channels_last(module)
    found = module(torch.rand(2, 3, 16, 16))
    assert found["out"].is_contiguous()
    assert found["others"][0].is_contiguous()
