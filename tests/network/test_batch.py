import torch

from hybrid_lightning.network.batch import first_samples


def test_first_samples_are_two_copies_on_the_cpu():
    batch = {
        "x": torch.arange(5),
        "trace": {"mask": torch.ones(3, 2)},
        "id": ["a", "b", "c"],
        "scale": torch.tensor(2.0),
    }
    cut = first_samples(batch)
    assert (cut["x"].tolist(), tuple(cut["trace"]["mask"].shape), cut["id"]) == ([0, 1], (2, 2), ["a", "b"])
    assert cut["scale"] == 2
    cut["x"].zero_()
    assert batch["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_single_sample_is_repeated():
    assert first_samples({"x": torch.tensor([[7, 8]])})["x"].tolist() == [[7, 8], [7, 8]]
