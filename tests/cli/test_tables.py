import numpy as np

from hybrid_lightning.cli.tables import write_table


def test_numbers_are_written_short_and_exact(tmp_path):
    write_table({"a": np.array([0.1, 1e-9], dtype=np.float32), "b": ["x,y", 'z"']}, tmp_path / "deep" / "t.csv")
    assert (tmp_path / "deep" / "t.csv").read_text().split() == ["a,b", '0.1,"x,y"', '1e-09,"z"""']
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.csv"]


def test_columns_may_have_any_name(tmp_path):
    columns = {
        "file": np.zeros((2, 3), dtype=np.float32),
        "allow_pickle": np.arange(2),
        "present/a": np.ones(2, dtype=bool),
    }
    write_table(columns, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as found:
        assert list(found) == list(columns)
        for name, values in columns.items():
            np.testing.assert_array_equal(found[name], values, strict=True)
