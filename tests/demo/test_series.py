import pytest
import torch

from hybrid_lightning.demo.series import SeriesDataModule, as_measured, read_ts
from hybrid_lightning.errors import ConfigError

SETS = [  # train and test series, longest, channels, classes
    ("ACSF1", 100, 100, 1460, 1, 10),
    ("ArrowHead", 36, 175, 251, 1, 3),
    ("JapaneseVowels", 270, 370, 29, 12, 9),
    ("OSULeaf", 200, 242, 427, 1, 6),
    ("PLAID", 537, 537, 1344, 1, 11),
]


def splits(name, **options):
    data = SeriesDataModule(name, **options)
    data.setup()
    return data.splits


@pytest.mark.parametrize(("name", "train", "test", "longest", "channels", "classes"), SETS)
def test_a_set_has_its_official_split_and_shapes(name, train, test, longest, channels, classes):
    found = splits(name)
    assert (len(found["train"]) + len(found["val"]), len(found["test"])) == (train, test)
    for split in found.values():
        assert sorted(set(split.targets.tolist())) == list(range(classes)), "every class is in every split"
        samples = len(split)
        in_series = (samples, longest) if channels == 1 else (samples, channels, longest)
        assert split.entries["series"]["values"].shape == in_series
        assert split.entries["series"]["mask"].shape == (samples, longest)
        assert split.entries["wave"].shape == (samples, channels, longest)
        assert split.entries["wave"].isfinite().all()


def test_waves_are_standardized_with_the_training_series_alone_and_zero_where_there_is_no_sample():
    found = splits("JapaneseVowels")
    mask = found["train"].entries["series"]["mask"]
    assert mask.sum(1).min() < 29
    waves = found["train"].entries["wave"].transpose(1, 2)
    std, mean = torch.std_mean(waves[mask], dim=0)
    torch.testing.assert_close((std, mean), (torch.ones(12), torch.zeros(12)), atol=1e-4, rtol=1e-4)
    assert not waves[~mask].any()
    unseen = found["test"].entries
    assert unseen["wave"].transpose(1, 2)[unseen["series"]["mask"]].mean(0).abs().max() > 1e-3


def test_validation_series_follow_the_seed_of_the_data_alone():
    first = splits("ArrowHead", seed=1)["val"].entries["wave"]
    torch.manual_seed(99)
    assert torch.equal(splits("ArrowHead", seed=1)["val"].entries["wave"], first)
    assert not torch.equal(splits("ArrowHead", seed=2)["val"].entries["wave"], first)


def test_a_ts_file_is_read_row_by_row(tmp_path):
    (tmp_path / "x.ts").write_text("#comment\n@problemName x\n@data\n1.5,-2,3:4\n7,8:0\n\n")
    series, classes = read_ts(tmp_path / "x.ts")
    assert [one.tolist() for one in series] == [[1.5, -2.0, 3.0], [7.0, 8.0]]
    assert classes.tolist() == [4, 0]


def test_fields_of_a_row_are_channels(tmp_path):
    (tmp_path / "x.ts").write_text("@data\n1,2:3,4:1\n5:6:2\n")
    series, classes = read_ts(tmp_path / "x.ts")
    assert [one.tolist() for one in series] == [[[1.0, 2.0], [3.0, 4.0]], [[5.0], [6.0]]]
    assert classes.tolist() == [1, 2]


def test_shorter_series_are_padded_and_longer_ones_cut_at_the_end():
    found = as_measured([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0, 6.0])], 3)
    assert found["values"].tolist() == [[1, 2, 0], [3, 4, 5]]
    assert found["mask"].tolist() == [[True, True, False], [True, True, True]]


def test_an_unknown_set_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"^data\.name: unknown set 'OSULeave'.*OSULeaf"):
        SeriesDataModule("OSULeave")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(ConfigError, match=rf"^data\.val_fraction: {fraction} is not between 0 and 1"):
        SeriesDataModule("PLAID", val_fraction=fraction)


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.importing.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package sktime. Install it with: pip install .*\[demo\]"):
        SeriesDataModule("PLAID").setup()
