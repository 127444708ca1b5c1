import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.weights.loading import Fit, WeightSource, load_weights, resized_positions
from hybrid_lightning.weights.safe_files import save_weights
from tests.small import changed, command


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(2, 3)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_come_back_bit_equal(name, tmp_path, layer):
    (save_weights if name.endswith("s") else torch.save)(layer.state_dict(), tmp_path / name)
    other = nn.Linear(2, 3)
    load_weights(other, str(tmp_path / name))
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(3, 2)}, r"covers 66\.7% of the values of Linear, .* Missing in the file: 'bias'\. Map"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
            r"covers 33\.3% .* Of another shape: 'weight \(2, 3\) in the file, \(3, 2\) in the part'",
        ),
        ({"weight": "text", "bias": torch.ones(3)}, r"Missing in the file: 'weight'"),
        ({"state_dict": {}}, r"covers 0\.0% .* Missing in the file: 'weight', 'bias'"),
        ({"fc.weight": torch.ones(3, 2), 7: torch.ones(1)}, r"Not in the part: 'fc.weight', '7'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(tensors, message, tmp_path, layer):
    torch.save(tensors, tmp_path / "w.pt")
    before = layer.weight.clone()
    with pytest.raises(ConfigError, match=message):
        load_weights(layer, str(tmp_path / "w.pt"))
    assert torch.equal(layer.weight, before)


def test_pretrained_asks_the_module_for_its_own_weights(layer):
    layer.load_pretrained = lambda: nn.init.ones_(layer.weight)
    load_weights(layer, "pretrained")
    assert layer.weight.eq(1).all()


def test_a_module_without_weights_of_its_own_says_what_to_give(layer):
    with pytest.raises(ConfigError, match=r"^here: Linear brings no pretrained weights of its own. Give the path"):
        load_weights(layer, "pretrained", "here")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.backbone.", "model.backbone."])
def test_what_training_scripts_put_around_weights_is_taken_off(wrap, prefix, tmp_path, layer):
    tensors = {prefix + name: tensor for name, tensor in layer.state_dict().items()}
    torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, tmp_path / "w.pt")
    other = nn.Linear(2, 3)
    report = load_weights(other, str(tmp_path / "w.pt"))
    assert torch.equal(other.weight, layer.weight)
    assert report == f"{tmp_path / 'w.pt'}: 2 of 2 tensors, 100.0% of the values."


def test_a_name_that_fits_as_it_is_wins_over_one_in_a_wrapper(layer):
    wrapped = {"module.weight": torch.zeros(3, 2), "weight": torch.ones(3, 2)}
    assert Fit.of(layer, wrapped).found["weight"].eq(1).all()


def test_a_classifier_in_the_file_is_reported_and_left_out(tmp_path, layer):
    torch.save({**layer.state_dict(), "fc.weight": torch.ones(1)}, tmp_path / "w.pt")
    report = load_weights(nn.Linear(2, 3), str(tmp_path / "w.pt"))
    assert report.endswith("2 of 2 tensors, 100.0% of the values. Not in the part: 'fc.weight'.")


def test_the_user_maps_names(tmp_path, layer):
    torch.save({"student.fc.weight": layer.weight.data, "student.fc.bias": layer.bias.data}, tmp_path / "w.pt")
    module = nn.Sequential(nn.Linear(2, 3))
    source = {"path": str(tmp_path / "w.pt"), "strip": ["student."], "rename": {"fc.": "0."}}
    load_weights(module, source)
    assert torch.equal(module[0].weight, layer.weight)


def test_weights_in_an_entry_of_their_own_are_named_by_their_path(tmp_path, layer):
    other = {name: torch.zeros_like(tensor) for name, tensor in layer.state_dict().items()}
    torch.save({"teacher": {"state_dict": layer.state_dict()}, "student": other, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"Not in the part: 'teacher\.weight', 'teacher\.bias', 'student\.weight'"):
        load_weights(nn.Linear(2, 3), str(tmp_path / "w.pt"))
    module = nn.Linear(2, 3)
    load_weights(module, {"path": str(tmp_path / "w.pt"), "strip": ["teacher."]})
    assert torch.equal(module.weight, layer.weight)


def test_less_is_enough_if_the_coverage_says_so(tmp_path, layer):
    torch.save({"weight": layer.weight.data}, tmp_path / "w.pt")
    other = nn.Linear(2, 3)
    bias = other.bias.clone()
    report = load_weights(other, {"path": str(tmp_path / "w.pt"), "coverage": 0.6})
    assert "1 of 2 tensors, 66.7% of the values. Missing in the file: 'bias'." in report
    assert torch.equal(other.bias, bias)
    with pytest.raises(ConfigError, match=r"66\.7% .* and 70\.0% are asked for"):
        load_weights(other, {"path": str(tmp_path / "w.pt"), "coverage": 0.7})


def test_old_batch_norms_without_a_counter_fit(tmp_path):
    norm = nn.BatchNorm1d(3)
    torch.save({n: t for n, t in norm.state_dict().items() if n != "num_batches_tracked"}, tmp_path / "w.pt")
    assert "4 of 4 tensors, 100.0%" in load_weights(nn.BatchNorm1d(3), str(tmp_path / "w.pt"))


def test_other_input_channels_point_to_the_fact_that_adapts_them(tmp_path):
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"build the part with those of the file, and write 'channels: N'"):
        load_weights(nn.Conv2d(1, 4, 3), str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "x", "sha": "1"}, r"^model\.parts\.stem\.weights: unknown key 'sha'\. Did you mean 'sha256'\?"),
        ({"sha256": "1"}, r"^model\.parts\.stem\.weights: .* is neither 'pretrained', nor a path"),
        ({"path": "x", "coverage": 0}, r"^model\.parts\.stem\.weights\.coverage: 0 is not a number above 0"),
        ({"path": "x", "strip": "a."}, r"^model\.parts\.stem\.weights: 'strip' is a list of prefixes"),
        ({"path": "x", "strip": [1.0]}, r"^model\.parts\.stem\.weights: 'strip' is a list of prefixes.* its quotes"),
        ({"path": "x", "rename": {"a.": 0.0}}, r"^model\.parts\.stem\.weights: 'strip' is a list of prefixes"),
    ],
)
def test_an_impossible_source_is_an_error_with_its_place(given, message, folder, capsys):
    part = {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image", "weights": given}
    assert command("fit", config=changed({"init.parts": {"stem": part}})) == 2

    assert re.search(message, capsys.readouterr().err.split("error: ")[1])


def test_a_source_that_was_read_before_is_taken(tmp_path, layer):
    torch.save(layer.state_dict(), tmp_path / "w.pt")
    source = WeightSource.parse(str(tmp_path / "w.pt"))
    assert WeightSource.parse(source) is source
    other = nn.Linear(2, 3)
    load_weights(other, source)
    assert torch.equal(other.weight, layer.weight)


def test_positional_embeddings_are_resized_as_images_and_other_tokens_stay():
    given = torch.randn(1, 1 + 16, 8)
    found = resized_positions("pos_embed", given, torch.empty(1, 1 + 64, 8))
    assert torch.equal(found[:, :1], given[:, :1])
    image = given[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = functional.interpolate(image, (8, 8), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[:, 1:], expected)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("weight", (1, 17, 8), (1, 65, 8)),
        ("pos_embed", (1, 17, 8), (1, 65, 9)),
        ("position_embeddings.weight", (512, 8), (128, 8)),
        ("pos_embed", (2, 17, 8), (2, 65, 8)),
    ],
)
def test_what_is_no_grid_of_positions_is_not_resized(name, old, new):
    assert resized_positions(name, torch.randn(old), torch.empty(new)) is None


def test_a_part_takes_its_weights_from_a_checkpoint_and_says_so(fitted, folder, capsys):
    (path,) = (fitted / "runs").rglob("last.ckpt")
    stem = {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image", "weights": str(path)}
    renamed = {**stem, "weights": {"path": str(path), "part": "stem"}}
    for name, part in (("stem", stem), ("first", renamed)):
        assert command("fit", config=changed({"init.parts": {name: part}})) == 0
        assert f"{name}: {path}: 2 of 2 tensors, 100.0% of the values." in capsys.readouterr().out
    assert command("fit", config=changed({"init.parts": {"first": stem}})) == 2
    assert "model.parts.first.weights.part: unknown part 'first'" in capsys.readouterr().err
