import contextlib
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.errors import ConfigError
from tests.small import classifier, table_config, write
from tests.tables import write_rows

INPUTS = {
    "photo": {
        "image": "file",
        "size": 8,
        "eval": [{"class_path": "Normalize", "init_args": {"mean": [0.5], "std": [2]}}],
    },
    "curve": {"array": "curve"},
    "table": {"numeric": ["age"], "categorical": ["site"]},
    "note": {"text": "note"},
}
PARTS = {
    "photo": {"module": "ConvExtractor", "args": {"channels": [2]}},
    "curve": {"module": "MLP", "args": {"hidden": [2]}},
    "table": {"module": "TabularMLP", "args": {"hidden": [2]}},
    "note": {"module": "BagOfWords", "args": {"width": 2}},
}


def make_rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    draw = np.random.default_rng(0)
    for number in range(24):
        pixels = draw.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number}.png")
        np.save(f"{number}.npy", draw.normal(size=4).astype(np.float32))
        sample = {"file": f"{number}.png", "curve": f"{number}.npy", "age": 40 + number, "site": f"0{number % 3}"}
        rows.append({**sample, "note": f"a word{number % 4}", "who": f"p{number // 2}", "label": "ny"[number % 2]})
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a manifest of four kinds of input and a run on it."""
    folder = tmp_path_factory.mktemp("samples")
    with contextlib.chdir(folder):
        write_rows("m.csv", make_rows())
        data = {"path": "m.csv", "inputs": INPUTS, "target": "label", "split_by": "who", "workers": 0}
        write(table_config(data, PARTS), "m.yaml")
        assert main(["fit", "m.yaml"]) == 0
        assert main(["predict", "m.yaml", "--ckpt_path", "best", "--output", "p.csv"]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def model(here):
    return HybridClassifier.load_from_checkpoint("runs/m/version_0/checkpoints/best.ckpt")


def sample(number: int = 0) -> dict[str, object]:
    return {key: value for key, value in make_rows()[number].items() if key not in ("who", "label")}


def test_a_raw_sample_is_predicted_as_its_row_of_the_table(model):
    with Path("p.csv").open() as file:
        wanted = list(csv.DictReader(file))
    found = model.predict([make_rows()[int(row["row"])] for row in wanted])
    assert [row["prediction"] for row in found] == [row["prediction"] for row in wanted]
    for name in ("probability_n", "probability_y"):
        values = [float(row[name]) for row in wanted]
        assert [row[name] for row in found] == pytest.approx(values, abs=1e-6)


def test_files_may_be_given_as_images_arrays_and_tensors_and_inputs_by_their_key(model):
    wanted = model.predict(sample())
    pixels = np.array(Image.open("0.png"))
    curve = np.load("0.npy")
    forms = [
        {"photo": Image.open("0.png"), "curve": curve},
        {"file": pixels, "curve": torch.from_numpy(curve)},
        {"photo": Path("0.png"), "curve": Path("0.npy").absolute()},
    ]
    for form in forms:
        given = {key: value for key, value in sample().items() if key not in ("file", "curve")}
        assert model.predict({**given, **form}) == wanted


def test_one_sample_gives_a_row_and_several_a_list(model):
    one = model.predict(sample())
    assert one.keys() == {"prediction", "probability_n", "probability_y"}
    assert one["probability_n"] + one["probability_y"] == pytest.approx(1)
    assert model.predict([sample(), sample(1)])[0]["probability_n"] == pytest.approx(one["probability_n"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fil": "0.png"}, "unknown key 'fil'. Did you mean 'file'?"),
        ({"file": "no.png"}, "there is no such file"),
        ({"file": 3}, "a value of type int is not a path, an image of Pillow or an array"),
        ({"file": np.zeros((3, 3))}, "an array \\(3, 3\\) of float64 is not an image"),
        ({"curve": [1, 2]}, "a value of type list is not a path, an array or a tensor"),
        ({"age": "old"}, "age: 'old' is not a number"),
        ({"note": ["a"]}, "note: a value of type list is neither text nor a number"),
        ({"site": ...}, "'site' is missing"),
        ({"file": ...}, "'file' is missing; given are .* write 'file': None"),
    ],
)
def test_a_wrong_sample_is_told(model, changes, says):
    given = {**sample(), **changes}
    with pytest.raises(ConfigError, match=says):
        model.predict({key: value for key, value in given.items() if value is not ...})


@pytest.mark.parametrize("given", [[], 3 * [None], [3], "a.png", 3, None])
def test_samples_are_dicts(model, given):
    with pytest.raises(ConfigError, match="give a sample as a dict"):
        model.predict(given)


def test_an_empty_cell_is_a_gap(model):
    assert model.predict({**sample(), "age": None})["prediction"] in "ny"


def test_a_checkpoint_without_options_takes_those_of_the_config(model):
    wanted = model.predict(sample())
    state = {**model.data_state, "inputs": {key: dict(known) for key, known in model.data_state["inputs"].items()}}
    del state["inputs"]["photo"]["options"]
    model.data_state = state
    with pytest.raises(ConfigError, match="does not hold the options of input 'photo'"):
        model.predict(sample())
    assert model.predict(sample(), inputs=INPUTS) == wanted


FOREIGN = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}


@pytest.mark.parametrize(
    "step",
    [
        "os.system",
        FOREIGN,
        {"class_path": "Normalize", "init_args": {"mean": FOREIGN}},
        {"class_path": "Normalize", "init_args": {"mean": [0.5, [FOREIGN]]}},
    ],
)
def test_a_transform_that_a_file_names_is_not_imported(step, model):
    model.data_state["inputs"]["photo"]["options"]["eval"] = ["RandomFlip", step]
    with pytest.raises(ConfigError, match="is code, which a file may not name"):
        model.predict(sample())
    assert not Path("pwned").exists()


def test_a_damaged_state_is_told_when_it_is_used(model):
    model.data_state["inputs"]["photo"]["options"]["size"] = 10**9
    with pytest.raises(ConfigError, match=r"inputs.photo.options.size: damaged: it holds .* GiB"):
        model.predict(sample())


def test_without_a_manifest_there_are_no_raw_samples():
    model = classifier()
    with pytest.raises(ConfigError, match="nothing is known of how the samples"):
        model.predict({"x": 1})


def test_modes_are_kept(model):
    model.train()
    model.network.parts["photo"].eval()
    modes = [module.training for module in model.modules()]
    model.predict(sample())
    assert [module.training for module in model.modules()] == modes


def test_after_a_fit_the_data_of_its_trainer_are_taken(here):
    from hybrid_lightning import from_config

    built = from_config("m.yaml", trainer={"max_epochs": 1, "logger": False, "enable_checkpointing": False})
    built.trainer.fit(built.model, built.data)
    assert built.model.predict(sample())["prediction"] in "ny"
