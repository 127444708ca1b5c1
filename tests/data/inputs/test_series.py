import json
import pickle

import numpy as np
import pytest
import torch

from hybrid_lightning.data.inputs.moments import spread
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.convolution import ResidualConv1d
from hybrid_lightning.network.modules.transformer import SequenceTransformer
from tests.data.inputs.bound import bound

RANDOM = np.random.default_rng(0)
SERIES = [3 * RANDOM.standard_normal((length, 2)) + [5, -1] for length in (4, 9, 1, 6)]
NAMES = [f"{i}.npy" for i in range(4)]


@pytest.fixture
def files(tmp_path):
    for name, series in zip(NAMES, SERIES, strict=True):
        np.save(tmp_path / name, series)
    return tmp_path


def test_channels_are_standardized_over_the_steps_of_the_training_series(files):
    entry = bound(files, {"file": NAMES}, fit_rows=[0, 1, 2], series="file")
    steps = np.concatenate(SERIES[:3])
    assert json.loads(json.dumps(entry.statistics)) == entry.statistics
    np.testing.assert_allclose(entry.statistics["mean"], steps.mean(0), rtol=1e-6)
    np.testing.assert_allclose(entry.statistics["std"], steps.std(0), rtol=1e-6)
    found = entry.read(3, False)["values"]
    expected = torch.from_numpy((SERIES[3] - steps.mean(0)) / steps.std(0)).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    plain = bound(files, {"file": NAMES}, series="file", standardize=False)
    assert plain.statistics == {}
    torch.testing.assert_close(plain.read(3, False)["values"], torch.from_numpy(SERIES[3]).float())


def test_absent_series_do_not_count_and_are_zeros(files):
    entry = bound(files, {"file": [None, *NAMES[1:]], "more": [1] * 4}, series="file")
    np.testing.assert_allclose(entry.statistics["mean"], np.concatenate(SERIES[1:]).mean(0), rtol=1e-6)
    batch = entry.collate([None, entry.read(1, True)], entry.read(1, True))
    assert not batch["values"][0].any()
    assert not batch["mask"][0].any()


def test_steps_are_padded_to_the_longest_of_the_batch_as_a_transformer_takes_them(files):
    entry = bound(files, {"file": NAMES}, series="file")
    values = [entry.read(row, True) for row in (0, 1, 2)]
    batch = entry.collate(values, values[0])
    assert batch["values"].shape == (3, 9, 2)
    assert batch["values"].dtype == torch.float32
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].sum(1).tolist() == [4, 9, 1]
    assert not batch["values"][~batch["mask"]].any()
    network = SequenceTransformer(2, width=8).eval()
    alone = network(**entry.collate(values[:1], values[0]))
    torch.testing.assert_close(network(**batch)[:1, :4], alone, atol=1e-5, rtol=1e-5)


def test_channels_of_one_length_are_what_a_convolution_takes(files):
    entry = bound(files, {"file": NAMES}, series="file", layout="channels", length=6)
    values = [entry.read(row, False) for row in range(4)]
    batch = entry.collate([*values, None], values[0])
    assert batch.shape == (5, 2, 6)
    assert not batch[0, :, 4:].any()
    steps = bound(files, {"file": NAMES}, series="file").read(1, False)["values"]
    assert torch.equal(batch[1], steps[:6].T)
    assert ResidualConv1d(2, channels=[4]).eval()(batch).isfinite().all()


def test_of_a_longer_series_the_first_steps_are_kept(files):
    entry = bound(files, {"file": NAMES}, series="file", length=4, standardize=False)
    assert torch.equal(entry.read(1, True)["values"], torch.from_numpy(SERIES[1][:4]).float())
    assert len(entry.read(2, True)["values"]) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1,2\n3,4.5\n"),
        ("a.csv", "\ufeffpressure,flow\r\n1,2\r\n3,4.5"),
        ("a.tsv", "pressure\tflow\n1\t2\n3\t4.5\n"),
        ("a.txt", "1 2\n3   4.5\n\n"),
        ("a.txt", "# pressure flow\n  1 2\n3\t4.5"),
    ],
)
def test_text_is_read_with_and_without_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    entry = bound(tmp_path, {"file": [name]}, series="file", standardize=False)
    assert entry.read(0, False)["values"].tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert entry.peek(0) == ()


def test_a_series_without_channels_gets_one(tmp_path):
    (tmp_path / "a.csv").write_text("volt\n1\n2\n4\n")
    np.save(tmp_path / "b.npy", np.array([1, 2, 4]))
    entry = bound(tmp_path, {"file": ["a.csv", "b.npy"]}, series="file", standardize=False)
    assert torch.equal(entry.read(0, True)["values"], torch.tensor([[1.0], [2.0], [4.0]]))
    assert torch.equal(entry.read(0, True)["values"], entry.read(1, True)["values"])


def test_gaps_of_a_series_are_refused_or_the_mean(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,\n3,4\n NA,6\n")
    with pytest.raises(ConfigError, match=r"row 0: 'a\.csv': cannot be read: 2 of its values are nan"):
        bound(tmp_path, {"file": ["a.csv"]}, series="file")
    entry = bound(tmp_path, {"file": ["a.csv"]}, series="file", gaps="zero")
    assert entry.statistics == {"mean": [2.0, 5.0], "std": [1.0, 1.0]}
    assert entry.read(0, False)["values"].tolist() == [[-1.0, 0.0], [1.0, -1.0], [0.0, 1.0]]


def test_a_constant_channel_is_only_centered(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0.1, 1], [0.1, 3], [0.1, 5]]))
    entry = bound(tmp_path, {"file": ["a.npy"]}, series="file")
    assert entry.statistics["std"][0] == 1.0
    assert entry.read(0, False)["values"][:, 0].abs().max() < 1e-6


def test_what_cannot_be_read_is_told_with_row_file_and_reason(tmp_path):
    contents = {
        "words.csv": "1,2\n3,many\n",
        "ragged.csv": "1,2\n3,4,5\n",
        "names.csv": "a,b\n",
        "nothing.csv": "",
        "infinite.txt": "1 inf\n",
        "series.xml": "<a/>",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "volume.npy", np.zeros((2, 2, 2)))
    for name in [*contents, "volume.npy", "gone.csv"]:
        entry = bound(tmp_path, {"file": [name]}, series="file", standardize=False)
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row 0: '{name}': (cannot be read|there is no)"):
            entry.read(0, True)
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row 0: '{name}': (cannot be read|there is no)"):
            bound(tmp_path, {"file": [name]}, series="file")
    for name in ("nothing.csv", "gone.csv"):
        with pytest.raises(ConfigError, match=rf"row 0: '{name}'"):
            bound(tmp_path, {"file": [name]}, series="file", standardize=False).peek(0)


def test_another_number_of_channels_is_refused(files):
    np.save(files / "0.npy", np.zeros((3, 5)))
    with pytest.raises(ConfigError, match=r"row 1: '1\.npy': cannot be read: it has 2 channels, and those before it 5"):
        bound(files, {"file": NAMES}, series="file")
    entry = bound(files, {"file": NAMES}, fit_rows=[1, 2], series="file")
    with pytest.raises(ConfigError, match=r"row 0: '0\.npy': .* 5 channels, and the training series have 2"):
        entry.read(0, True)
    entry = bound(files, {"file": NAMES}, series="file", standardize=False)
    values = [entry.read(row, True) for row in range(2)]
    with pytest.raises(ConfigError, match=r"series of one batch have \[2, 5\] channels"):
        entry.collate(values, values[0])


def test_of_many_rows_some_at_equal_distances_are_fitted(files, monkeypatch):
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]
    assert (spread([7], 4), spread([], 4)) == ([7], [])
    monkeypatch.setattr("hybrid_lightning.data.inputs.files.MOST_FITTED", 2)
    entry = bound(files, {"file": NAMES}, series="file")
    np.testing.assert_allclose(entry.statistics["mean"], np.concatenate([SERIES[0], SERIES[3]]).mean(0), rtol=1e-6)


def test_training_series_that_are_all_absent_are_refused(files):
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: .*training"):
        bound(files, {"file": [None, *NAMES[1:]], "more": [1] * 4}, fit_rows=[0], series="file")


def test_an_entry_can_be_sent_to_another_process(files):
    entry = bound(files, {"file": NAMES}, series="file")
    sent = pickle.loads(pickle.dumps(entry))
    assert torch.equal(sent.read(1, False)["values"], entry.read(1, False)["values"])


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_time_stamps_are_standardized_before_they_are_rounded(tmp_path, suffix):
    for row in range(3):
        steps = 1_700_000_000_000 + 60_000.0 * row + 1000.0 * np.arange(20)
        if suffix == "npy":
            np.save(tmp_path / f"{row}.npy", steps)
        else:
            np.savetxt(tmp_path / f"{row}.csv", steps, "%.1f")
    cells = {"file": [f"{row}.{suffix}" for row in range(3)]}
    values = bound(tmp_path, cells, series="file").read(1, False)["values"]
    assert len(values.unique()) == 20
    assert abs(values).max() < 3
    with pytest.raises(ConfigError, match=r"row 1: .*large beside their differences"):
        bound(tmp_path, cells, series="file", standardize=False).read(1, False)


def test_lines_that_are_left_out_are_remarked(tmp_path):
    (tmp_path / "a.csv").write_text(",0,1\n0,5.5,6.5\n1,5.6,6.6\n")
    entry = bound(tmp_path, {"file": ["a.csv"]}, series="file")
    value = entry.read(0, False)
    assert value["values"].shape == (2, 2)
    header, index = entry.remarks(tmp_path / "a.csv", value)
    assert "',0,1'" in header
    assert "counts the steps" in index
