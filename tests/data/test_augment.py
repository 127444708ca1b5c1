import random

import numpy as np
import pytest
import torch
from torch import nn

from hybrid_lightning.data.augment import make_augmentation
from hybrid_lightning.errors import ConfigError

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KORNIA = {
    "RandomAffine": {"degrees": 20.0, "translate": [0.2, 0.2], "p": 0.8},
    "RandomHorizontalFlip": {"p": 0.5},
    "ColorJiggle": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "p": 0.8},
    "RandomErasing": {"p": 0.7},
    "RandomResizedCrop": {"size": [8, 8]},
    "RandomElasticTransform": {"p": 0.7},
    "RandomMotionBlur": {"kernel_size": 3, "angle": 35.0, "direction": 0.5},
    "RandomGaussianNoise": {"p": 0.7},
    "RandomPerspective": {"p": 0.7},
}


def make(*items, key="photo"):
    return make_augmentation({key: list(items)}, ["photo", "table", "wave"])


def flipped(**given):
    return {"class_path": "RandomFlip", "init_args": given}


class Trainable(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, values):
        return values * self.scale


class Dropping(nn.Module):
    def forward(self, values):
        return values[1:]


class Pair(nn.Module):
    def forward(self, values):
        return values, values


class Flaky(nn.Module):
    def forward(self, values):
        raise RuntimeError("out of luck")


def test_each_sample_of_a_batch_is_flipped_by_itself():
    found = make(flipped(p=0.5))({"photo": torch.cat([IMAGES] * 40)})["photo"]
    mirrored = [torch.equal(one, image.flip(-1)) for one, image in zip(found, torch.cat([IMAGES] * 40), strict=True)]
    kept = [torch.equal(one, image) for one, image in zip(found, torch.cat([IMAGES] * 40), strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 80 < sum(mirrored) < 160


def test_noise_has_up_to_its_deviation():
    noise = make({"class_path": "RandomNoise", "init_args": {"std": 2.0}})({"photo": torch.zeros(400, 1000)})["photo"]
    deviations = noise.std(1)
    assert 0 < deviations.min() < 0.1
    assert 1.8 < deviations.max() < 2.2
    assert 0.9 < deviations.mean() < 1.1


def test_other_entries_and_the_given_batch_stay_as_they_are():
    batch = {"photo": IMAGES, "table": {"numeric": torch.ones(6, 2)}, "target": torch.arange(6)}
    before = IMAGES.clone()
    found = make(flipped(p=1.0))(batch)
    assert torch.equal(found["photo"], IMAGES.flip(-1))
    assert torch.equal(batch["photo"], before)
    assert all(found[key] is batch[key] for key in ("table", "target"))


def test_of_a_dict_the_values_are_changed():
    wave = {"values": torch.ones(2, 5, 3), "mask": torch.ones(2, 5, dtype=torch.bool)}
    found = make({"class_path": "RandomNoise", "init_args": {"std": 1.0}}, key="wave")({"wave": wave})["wave"]
    assert not torch.equal(found["values"], wave["values"])
    assert found["mask"] is wave["mask"]


def test_absent_samples_stay_zeros():
    present = torch.tensor([True, False] * 3)
    images = IMAGES * present.view(-1, 1, 1, 1)
    found = make({"class_path": "RandomNoise", "init_args": {"std": 1.0}})({"photo": images, "present/photo": present})
    assert not found["photo"][~present].any()
    assert found["photo"][present].ne(images[present]).all(0).any()


def test_nothing_is_trained_by_an_augmentation():
    images = IMAGES.clone().requires_grad_()
    found = make(f"{__name__}.Trainable")({"photo": images})["photo"]
    assert torch.equal(found, 2 * images)
    assert not found.requires_grad


@pytest.mark.parametrize("name", KORNIA)
def test_kornia_draws_from_torchs_random_state_alone(name):
    augment = make({"class_path": f"kornia.augmentation.{name}", "init_args": KORNIA[name]})
    np.random.seed(1)
    random.seed(1)
    others = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(3)
    first = [augment({"photo": IMAGES})["photo"] for _ in range(3)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others
    np.random.seed(2)
    random.seed(2)
    torch.manual_seed(3)
    again = make({"class_path": f"kornia.augmentation.{name}", "init_args": KORNIA[name]})
    assert all(torch.equal(one, again({"photo": IMAGES})["photo"]) for one in first)
    assert not all(torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("config", [None, {}, {"photo": []}])
def test_without_augmentation_a_batch_stays_as_it_is(config):
    assert torch.equal(make_augmentation(config, ["photo"])({"photo": IMAGES})["photo"], IMAGES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], r"^data\.augment: \[\] is not a dict\. Write such as \{photo: \[RandomFlip\]\}"),
        ({"foto": []}, r"^data\.augment: unknown input 'foto'\. Did you mean 'photo'\?"),
        ({"photo": "RandomFlip"}, r"^data\.augment\.photo: 'RandomFlip' is not a list"),
        ({"photo": ["RandomCrop"]}, r"^data\.augment\.photo\.0: unknown name 'RandomCrop'"),
        ({"photo": ["RandomNoise"]}, r"^data\.augment\.photo\.0\.init_args: 'std' must be given"),
        ({"photo": ["kornia.augmentation.RandomAffin"]}, r"unknown name 'RandomAffin'\. Did you mean 'RandomAffine'\?"),
        ({"photo": [torch.square]}, r"^data\.augment\.photo\.0: a builtin_function_or_method is not a torch module"),
        ({"photo": ["torch.square"]}, r"^data\.augment\.photo\.0: a builtin_function_or_method is not a torch module"),
    ],
)
def test_an_impossible_augmentation_is_told_with_its_place(config, message):
    with pytest.raises(ConfigError, match=message):
        make_augmentation(config, ["photo", "table"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Dropping", r"photo\.0: Dropping returns a tensor \(5, 3, 8, 8\) for a tensor \(6, 3, 8, 8\)"),
        ("Pair", r"photo\.0: Pair returns a tuple for a tensor"),
        ("Flaky", r"photo\.0: Flaky fails on a tensor \(6, 3, 8, 8\): out of luck"),
    ],
)
def test_a_module_that_returns_no_batch_is_told(name, message):
    with pytest.raises(ConfigError, match=message):
        make(f"{__name__}.{name}")({"photo": IMAGES})


@pytest.mark.parametrize("entry", [{"numeric": torch.ones(2, 2)}, torch.ones(2, 2, dtype=torch.int64)])
def test_what_holds_no_floating_tensor_cannot_be_augmented(entry):
    with pytest.raises(ConfigError, match=r"^data\.augment\.table: the batch has no tensor of floating numbers"):
        make(flipped(), key="table")({"table": entry})
