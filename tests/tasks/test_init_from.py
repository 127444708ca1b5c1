import re
from pathlib import Path

import pytest
import torch

from hybrid_lightning.errors import ConfigError
from tests.small import PARTS, changed, classifier, command, loader, regressor, table, trainer

STEM = {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image"}


@pytest.fixture
def before(fitted: Path) -> Path:
    (path,) = (fitted / "runs").rglob("last.ckpt")
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_new_run_starts_from_the_weights_that_fit(before, folder, capsys):
    """The parts are frozen, one has another name, and there are other classes."""
    parts = {"first": {**STEM, "unfreeze": "never"}, "body": {**PARTS["body"], "input": "first", "unfreeze": "never"}}
    start = {"path": str(before), "parts": {"first": "stem"}}
    config = changed(
        {"init.parts": parts, "init.num_classes": 2, "data.init_args.classes": [0, 1], "init.init_from": start}
    )
    assert command("fit", config=config) == 0
    out = capsys.readouterr().out
    assert f"init_from {before}: " in out
    assert re.search(r"  first: 2 of 2 tensors, 100\.0% of the values\.", out)
    assert re.search(r"  head: 0 of 2 tensors, 0\.0% of the values\. Of another shape: ", out)
    old = weights(before)
    (path,) = Path("runs").rglob("last.ckpt")
    new = weights(path)
    for name, source in (("first", "stem"), ("body", "body")):
        own = {n: t for n, t in new.items() if n.startswith(f"network.parts.{name}.")}
        assert own
        assert all(torch.equal(t, old[n.replace(name, source, 1)]) for n, t in own.items())
    assert torch.load(path, weights_only=True)["global_step"] == 3


def test_a_resumed_run_does_not_start_again_from_there(before, folder, capsys):
    config = changed({"init.init_from": str(before)})
    assert command("fit", config=config) == 0
    first = capsys.readouterr().out
    assert "init_from" in first
    start = Path(before).read_bytes()
    moved = changed({"init.init_from": "gone.ckpt", "trainer.max_epochs": 2})
    assert command("fit", "--resume", "auto", config=moved) == 0
    assert "init_from" not in capsys.readouterr().out
    assert Path(before).read_bytes() == start


def test_a_pretrained_part_found_there_does_not_read_its_own_weights(before, folder):
    parts = {"stem": {**STEM, "weights": "pretrained"}, "body": PARTS["body"]}  # a ConvExtractor has none to read
    assert command("fit", config=changed({"init.parts": parts})) == 2
    assert command("fit", config=changed({"init.parts": parts, "init.init_from": str(before)})) == 0


def test_a_path_is_looked_up_beside_the_config(before, folder, monkeypatch):
    (folder / "configs").mkdir()
    (folder / "configs" / "start.ckpt").write_bytes(before.read_bytes())
    from hybrid_lightning.cli import main
    from tests.small import write

    assert main(["fit", "--config", write(changed({"init.init_from": "start.ckpt"}), "configs/c.yaml")]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no.ckpt", "model.init_from: there is no file 'no.ckpt'"),
        ({"path": "OLD", "part": {}}, "model.init_from: unknown key 'part'. Did you mean 'parts'?"),
        ({"parts": {}}, "model.init_from: {'parts': {}} is neither a path nor"),
        (
            {"path": "OLD", "parts": {"stam": "stem"}},
            "model.init_from.parts: unknown part 'stam'. Did you mean 'stem'?",
        ),
        ({"path": "OLD", "parts": {"stem": "stam"}}, "model.init_from.parts.stem: unknown part of the file 'stam'."),
        (
            {"path": "OLD", "parts": {"body": "head"}, "coverage": 0.99},
            "of the values of this network, and 99.0% are asked",
        ),
        (
            {"path": "OLD", "parts": {"body": "head"}},
            "model.init_from.parts.body: nothing of 'head' fits. Missing in the file: 'block0.0.weight', ",
        ),
        ("foreign.pt", "foreign.pt' holds no network of this program"),
    ],
)
def test_what_cannot_be_started_from_is_an_error(given, message, before, folder, capsys):
    torch.save({"weight": torch.ones(1)}, "foreign.pt")
    given = {**given, "path": str(before)} if isinstance(given, dict) and given.get("path") == "OLD" else given
    assert command("fit", config=changed({"init.init_from": given})) == 2
    assert message in capsys.readouterr().err


def test_a_network_of_which_nothing_fits_is_an_error(before, folder, capsys):
    changes = {"init.parts": {"stem": {**STEM, "args": {"channels": [5]}}}, "init.init_from": str(before)}
    assert command("fit", config=changed({**changes, "init.num_classes": 2, "data.init_args.classes": [0, 1]})) == 2
    assert "covers 0.0% of the values of this network" in capsys.readouterr().err


def test_a_regression_that_starts_from_another_takes_the_scale_that_its_head_has_learned(tmp_path):
    entries = {"x": table(), "target": 1000 + 50 * table().sum(1)}
    first = trainer(max_epochs=3)
    first.fit(regressor(lr=0.05), loader(entries))
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = regressor(lr=1e-9, init_from=str(tmp_path / "a.ckpt"))
    other = {"x": table(), "target": 3 * entries["target"]}  # of another scale
    trainer().fit(again, loader(other))
    torch.testing.assert_close(again.objective.scale.mean, first.lightning_module.objective.scale.mean)
    batch = {"x": table()}
    first.lightning_module.eval()
    expected = first.lightning_module.predictions(first.lightning_module(batch))
    torch.testing.assert_close(again.eval().predictions(again(batch)), expected, rtol=1e-4, atol=1e-2)


def test_a_regression_with_a_fresh_head_takes_the_scale_of_its_own_targets(tmp_path):
    entries = {"x": table(), "target": 1000 + 50 * table().sum(1)}
    first = trainer()
    first.fit(regressor(), loader(entries))
    first.save_checkpoint(tmp_path / "a.ckpt")
    two = torch.stack([entries["target"], 3 * entries["target"]], 1)
    again = regressor(num_outputs=2, init_from=str(tmp_path / "a.ckpt"))
    trainer().fit(again, loader({"x": table(), "target": two}))
    torch.testing.assert_close(again.objective.scale.mean, two.mean(0))


@pytest.mark.parametrize("fusion", ["LogitFusion", "BlendFusion"])
def test_a_scale_that_a_fusion_has_learned_goes_with_it_where_the_head_has_no_tensors(fusion, tmp_path):
    entries = {"x": table(), "y": table(seed=2), "target": 1000 + 50 * table().sum(1)}
    parts = {name: {"module": "MLP", "args": {"hidden": [5]}} for name in ("x", "y")}
    options = {"parts": parts, "fusion": {"module": fusion}}
    first = trainer()
    first.fit(regressor(**options), loader(entries))
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = regressor(**options, lr=1e-9, init_from=str(tmp_path / "a.ckpt"))
    trainer().fit(again, loader({**entries, "target": 3 * entries["target"]}))
    torch.testing.assert_close(again.objective.scale.mean, first.lightning_module.objective.scale.mean)


WAVES = {"module": "RandomConvolutions", "args": {"features": 168}}


@pytest.fixture(scope="module")
def with_waves(tmp_path_factory) -> Path:
    """A checkpoint with random features of series of 40 positions."""
    entries = {"x": table(), "waves": table(features=40), "target": torch.arange(27) % 3}
    first = trainer(max_epochs=1)
    first.fit(classifier(parts=small_parts()), loader(entries))
    path = tmp_path_factory.mktemp("waves") / "a.ckpt"
    first.save_checkpoint(path)
    return path


def small_parts(**options) -> dict:
    return {"x": {"module": "MLP", "args": {"hidden": [5]}}, "waves": {**WAVES, **options}}


def started(path: Path | dict, length: int = 40, **options):
    """The random features of a new model, and the report."""
    start = path if isinstance(path, dict) else str(path)
    model = classifier(parts=small_parts(**options), init_from=start)
    model.build({"x": table(), "waves": table(features=length)})
    return model.network.parts["waves"], model.network.weight_reports["init_from"]


def test_random_features_of_equal_options_are_taken_with_what_they_have_read(with_waves):
    part, report = started(with_waves)
    assert part.prepared
    saved = weights(with_waves)
    assert torch.equal(part.biases, saved["network.parts.waves.biases"])
    assert "waves: 3 of 3 tensors" in report


@pytest.mark.parametrize(
    ("length", "args", "reason"),
    [
        (80, {"features": 168}, r"'in_shape': \[40\].* there, and .*'in_shape': \[80\].* here"),
        (40, {"features": 168, "pool": ["mean"]}, r"'pool': \['mean'\].* here"),
        (40, {"features": 336}, r"Of another shape: .*biases"),
    ],
)
def test_random_features_of_other_options_stay_fresh(length, args, reason, with_waves):
    part, report = started(with_waves, length, args=args)
    assert not part.prepared
    assert not part.biases.any()
    assert re.search(rf"  waves: fresh, because .*{reason}", report)
    assert "x: 2 of 2 tensors" in report


def test_what_was_trained_on_other_random_features_stays_fresh(with_waves):
    start = str(with_waves)
    model = classifier(parts=small_parts(args={"features": 168, "pool": ["mean"]}), init_from=start)
    model.build({"x": table(), "waves": table(features=40)})
    report = model.network.weight_reports["init_from"]
    reason = "fresh, because in the file it was trained on other random features than those of 'waves' here"
    assert f"  fusion: {reason}" in report
    assert f"  head: {reason}" in report
    saved = weights(with_waves)
    for name, tensor in model.network.parts["head"].named_parameters():
        assert not torch.equal(tensor, saved[f"network.parts.head.{name}"])


def test_a_head_is_not_taken_for_a_random_part_that_the_file_lacks(tmp_path):
    series = {"y": table(features=40), "z": table(features=40), "target": torch.arange(27) % 3}
    first = trainer()
    first.fit(classifier(parts={"y": WAVES}), loader(series))
    first.save_checkpoint(tmp_path / "a.ckpt")
    start = {"path": str(tmp_path / "a.ckpt")}
    with pytest.raises(ConfigError, match=r"head.*trained on other random features.*'z' here"):
        classifier(parts={"z": WAVES}, init_from=start).build(series)
    taken = classifier(parts={"z": WAVES}, init_from={**start, "parts": {"z": "y"}})
    taken.build(series)
    saved = weights(tmp_path / "a.ckpt")
    for name, tensor in taken.network.parts["head"].state_dict().items():
        assert torch.equal(tensor, saved[f"network.parts.head.{name}"])


def test_random_features_of_a_file_without_options_stay_fresh(with_waves, tmp_path):
    torch.save(weights(with_waves), tmp_path / "plain.pt")
    part, report = started(tmp_path / "plain.pt")
    assert not part.prepared
    assert "waves: fresh, because the file does not say how it was made" in report


def test_random_features_that_are_asked_for_by_name_must_fit(with_waves):
    with pytest.raises(ConfigError, match=r"^model\.init_from\.parts\.waves: nothing of 'waves' fits.*\[80\]"):
        started({"path": str(with_waves), "parts": {"waves": "waves"}}, 80)


def test_a_fusion_with_other_tensors_takes_the_scale_of_its_own_targets(tmp_path):
    entries = {"x": table(), "y": table(seed=2), "target": 1000 + 50 * table().sum(1)}
    parts = {name: {"module": "MLP", "args": {"hidden": [5]}} for name in ("x", "y")}
    first = trainer()
    first.fit(regressor(parts=parts, fusion={"module": "LogitFusion"}), loader(entries))
    first.save_checkpoint(tmp_path / "a.ckpt")
    parts["z"] = {**parts["y"], "input": "y"}
    again = regressor(parts=parts, fusion={"module": "LogitFusion"}, init_from=str(tmp_path / "a.ckpt"))
    trainer().fit(again, loader({**entries, "target": 3 * entries["target"]}))
    torch.testing.assert_close(again.objective.scale.mean, 3 * entries["target"].mean(0, keepdim=True))


def test_pretrained_parts_that_read_data_must_fit_too(with_waves):
    with pytest.raises(ConfigError, match=r"^model\.init_from: part 'waves' is pretrained.* 0\.0% of it\. It was made"):
        started(with_waves, 80, weights=str(with_waves))


def test_a_file_of_which_nothing_is_taken_says_why(with_waves):
    with pytest.raises(ConfigError, match=r"covers 0\.0%.* Of 'waves' nothing is taken: it was made with .*\[80\]"):
        classifier(num_classes=5, parts={"waves": WAVES}, init_from=str(with_waves)).build(
            {"waves": table(features=80)}
        )
