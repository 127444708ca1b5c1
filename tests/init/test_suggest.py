import re

import numpy as np
import pandas
import pytest
import yaml

from hybrid_lightning import from_config, suggest
from hybrid_lightning.cli import main
from hybrid_lightning.errors import ConfigError
from tests.data.make_files import make_manifest

EARLY_STOPPING = re.compile(r"# (callbacks: .*EarlyStopping.*)")


def frame(rows: int = 60) -> pandas.DataFrame:
    random = np.random.default_rng(0)
    label = np.arange(rows) % 3
    columns = {"age": random.normal(size=rows) + label, "site": random.choice(["n", "e"], rows), "dose": np.nan}
    columns |= {"label": np.array(["low", "mid", "top"])[label]}
    return pandas.DataFrame(columns)


def written(found, path="mine.yaml"):
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(found.text)
    return path


def test_every_kind_of_input_is_found_and_check_accepts_the_config(folder, capsys):
    path = make_manifest("files", rows=60, missing=0.1)
    found = suggest(path, "label")
    assert main(["check", "--config", written(found)]) == 0, capsys.readouterr().err
    arguments = found["data"]["init_args"]
    assert arguments["split_column"] == "split"
    assert arguments["split_by"] == "patient"
    assert arguments["id"] == "sample"
    kinds = {key: next(iter(options)) for key, options in arguments["inputs"].items()}
    images = {"photo": "image", "xray": "image"}
    series = {"curve": "series", "curve_wave": "series"}
    others = {"scan": "volume", "emb": "array", "spectrum": "array", "sound": "audio", "report": "text"}
    assert kinds == {**images, **series, **others, "table": "numeric"}
    assert not {"label", "patient", "sample", "split"} & {*arguments["inputs"]["table"]["numeric"]}


def test_the_text_is_the_config(folder):
    found = suggest(frame(), "label")
    assert yaml.safe_load(found.text) == found
    assert str(found) == found.text
    assert found["model"]["init_args"]["num_classes"] == 3
    assert found.notes[0] == "60 rows; 'label' is the target, 3 classes: low 20, mid 20, top 20"
    assert "# not read: 'dose', which holds nothing" in found.text


def test_a_table_in_memory_is_suggested_and_fitted_without_a_file(folder):
    found = suggest(frame())
    assert "path" not in found["data"]["init_args"]
    quiet = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    built = from_config(found, data={"workers": 0}, trainer=quiet)
    built.trainer.fit(built.model, built.data)
    assert built.trainer.global_step == 2


def test_another_table_may_take_the_place_of_the_one_that_was_looked_at(folder):
    quiet = {"logger": False, "accelerator": "cpu"}
    other = from_config(suggest(frame()), data={"path": frame(30)}, trainer=quiet)
    other.data.setup()
    assert sum(map(len, other.data.datasets.values())) == 30


def test_only_tables_of_the_data_may_be_in_memory(folder):
    with pytest.raises(ConfigError, match="data: unknown argument that may be a DataFrame 'inputs'"):
        from_config(suggest(frame()), data={"inputs": frame()})


def test_early_stopping_can_be_switched_on(folder, capsys):
    frame().to_csv("rows.csv", index=False)
    found = suggest("rows.csv")
    found.text = EARLY_STOPPING.sub(r"\1", found.text)
    assert "EarlyStopping" in yaml.safe_load(found.text)["trainer"]["callbacks"][0]["class_path"]
    assert main(["plan", "--config", written(found)]) == 0, capsys.readouterr().err


def test_a_rare_class_brings_the_words_against_it(folder, capsys):
    rows = frame(100)
    rows["label"] = ["ill" if row % 10 == 0 else "well" for row in range(100)]
    rows.to_csv("rows.csv", index=False)
    found = suggest("rows.csv")
    assert "'ill' has 10 of 100 rows" in found.text
    found.text = found.text.replace("# class_weights: balanced", "class_weights: balanced")
    found.text += "checkpoint: {monitor: val/macro_f1}\n"
    assert main(["plan", "--config", written(found)]) == 0, capsys.readouterr().err
    assert "class_weights" not in suggest(frame()).text


def test_numbers_are_a_regression_and_skewed_ones_bring_logarithms(folder):
    rows = frame()
    rows["price"] = np.round(np.exp(np.linspace(1, 12, 60)), 2)
    found = suggest(rows, "price")
    assert found["model"]["class_path"] == "HybridRegressor"
    assert "num_classes" not in found["model"]["init_args"]
    assert "{column: price, transform: log} learns its logarithm" in found.text
    several = suggest(rows, ["price", "age"])
    assert several["model"]["init_args"]["num_outputs"] == 2
    assert several["data"]["init_args"]["target"] == ["price", "age"]


def test_a_copy_of_the_target_is_no_input():
    rows = frame()
    rows["class_number"] = np.arange(60) % 3
    found = suggest(rows, "label")
    assert found["data"]["init_args"]["inputs"] == {"table": {"numeric": ["age"], "categorical": ["site"]}}
    assert "not read: 'class_number', which holds what tells the target of each row" in found.text


def test_gaps_of_numbers_are_kept_for_the_table():
    rows = frame()[["age", "label"]]
    rows.loc[::5, "age"] = np.nan
    assert suggest(rows)["data"]["init_args"]["inputs"] == {"table": {"numeric": ["age"], "gaps": "keep"}}


def test_rows_without_any_input_are_told():
    rows = frame()[["age", "label"]]
    rows.loc[::5, "age"] = np.nan
    assert suggest(rows).notes[-1] == "12 rows have no input at all; remove them, as a run refuses them"


def test_nothing_to_predict_from_is_an_error():
    with pytest.raises(ConfigError, match=r"init: there is no column to predict from.* 'dose' holds nothing"):
        suggest(frame()[["dose", "label"]])


def test_names_that_yaml_would_change_are_quoted():
    rows = frame().rename(columns={"age": "1e3", "site": "yes: # no\n\u2028"})
    table = yaml.safe_load(suggest(rows).text)["data"]["init_args"]["inputs"]["table"]
    assert table == {"numeric": ["1e3"], "categorical": ["yes: # no\n\u2028"]}


def test_many_rows_have_fewer_epochs_and_larger_batches():
    small, large = suggest(frame()), suggest(frame(30_000))
    assert (small["trainer"]["max_epochs"], large["trainer"]["max_epochs"]) == (30, 3)
    assert large["data"]["init_args"]["batch_size"] == 256
    assert "batch_size" not in small["data"]["init_args"]
