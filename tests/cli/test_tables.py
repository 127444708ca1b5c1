import numpy as np

from hybrid_lightning.cli.tables import write_table


def test_numbers_are_written_short_and_exact(tmp_path):
    write_table({"a": np.array([0.1, 1e-9], dtype=np.float32), "b": ["x,y", 'z"']}, tmp_path / "deep" / "t.csv")
    assert (tmp_path / "deep" / "t.csv").read_text().split() == ["a,b", '0.1,"x,y"', '1e-09,"z"""']
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.csv"]
