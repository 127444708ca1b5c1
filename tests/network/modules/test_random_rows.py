import torch

from hybrid_lightning.network.modules.random_rows import RandomRows, inputs_by_name


def kept(rows, count, chunk, seed=0, values=None):
    sample = RandomRows(count, torch.Generator().manual_seed(seed), values)
    for part in rows.split(chunk):
        sample.add(part)
    return torch.stack(sample.rows())


def test_the_sample_depends_on_the_seed_and_not_on_the_batches():
    rows = torch.arange(500.0).unsqueeze(1)
    sample = kept(rows, 40, chunk=500)
    assert all(torch.equal(sample, kept(rows, 40, chunk)) for chunk in (1, 7, 64))
    assert not torch.equal(sample, kept(rows, 40, 64, seed=1))


def test_every_row_is_as_likely_as_another():
    rows = torch.arange(20)
    counts = sum(kept(rows, 5, 6, seed).bincount(minlength=20) for seed in range(400))
    # 100 on average, with a deviation of 9
    assert counts.min() > 60
    assert counts.max() < 140


def test_fewer_rows_than_wanted_all_stay():
    assert sorted(kept(torch.arange(7), 10, 3).tolist()) == list(range(7))
    assert RandomRows(10, torch.Generator()).rows() == []


def test_large_rows_are_fewer_and_at_least_one_stays():
    assert len(kept(torch.zeros(50, 4, 5), 30, 8, values=200)) == 10
    assert len(kept(torch.zeros(50, 4, 5), 30, 8, values=3)) == 1


def test_kept_rows_do_not_share_memory_with_their_batch():
    batch = torch.zeros(4, 2)
    sample = RandomRows(4, torch.Generator())
    sample.add(batch)
    batch.fill_(1)
    assert torch.stack(sample.rows()).sum() == 0


def test_a_single_dict_names_its_inputs_and_others_are_in_order():
    assert inputs_by_name([{"values": 1, "mask": 2}], ("values", "mask")) == {"values": 1, "mask": 2}
    assert inputs_by_name([1, 2], ("values", "mask")) == {"values": 1, "mask": 2}
    assert inputs_by_name([1], ("values", "mask")) == {"values": 1}
