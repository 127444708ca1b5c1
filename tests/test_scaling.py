"""The benchmarks of many ranks, workers and rows measure what their texts say."""

import math

import pytest
from pyarrow import parquet

from tests.benchmarks import loader_workers, manifest_ranks, step_time
from tests.benchmarks.step_time import RANKS, Link, Phase

PHASE = Phase(compute=0.5, gradients=4_000_000, buckets=2, buffers=1000)
SLOW = Link(bandwidth=1e6, latency=0.01)


def test_one_rank_sends_nothing():
    assert step_time.step_time(PHASE, 1, SLOW) == (PHASE.compute, PHASE.compute)


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_a_ring_moves_each_byte_twice_but_for_the_share_of_a_rank(ranks):
    moved = 2 * (PHASE.gradients - PHASE.gradients / ranks) / SLOW.bandwidth
    waited = PHASE.buckets * 2 * (ranks - 1) * SLOW.latency
    assert step_time.all_reduce_seconds(PHASE, ranks, SLOW) == pytest.approx(moved + waited)


def test_buffers_reach_all_ranks_in_as_many_rounds_as_their_number_doubles():
    seconds = [step_time.broadcast_seconds(PHASE, ranks, SLOW) for ranks in RANKS]
    assert seconds == pytest.approx([rounds * 0.011 for rounds in range(len(RANKS))])


@pytest.mark.parametrize("link", [SLOW, Link(1e12, 1e-6)])
def test_no_step_is_shorter_than_its_longest_part_and_none_longer_than_their_sum(link):
    before = 1.0
    for ranks in RANKS:
        found, share = step_time.step_time(PHASE, ranks, link), step_time.efficiency(PHASE, ranks, link)
        reduce = step_time.all_reduce_seconds(PHASE, ranks, link)
        assert max(PHASE.compute, reduce) <= found.hidden <= found.alone
        assert 0 < share.alone <= share.hidden <= 1
        assert share.alone <= before
        before = share.alone


def test_the_table_has_a_line_for_each_phase_speed_and_link(capsys):
    links = {"1 Gbit/s": SLOW, "10 Gbit/s": Link(1e9, 0)}
    step_time.print_table(dict.fromkeys(step_time.PHASES, PHASE), links, [1, 50])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 * 2 * 2
    assert all(line.count("%") == 2 * (len(RANKS) - 1) for line in lines)


def test_each_row_of_the_manifest_has_a_path_of_its_own_that_leads_to_an_image(tmp_path):
    rows = 250
    table = parquet.read_table(manifest_ranks.write_manifest(tmp_path, rows))
    paths = table.column("path").to_pylist()
    assert len(set(paths)) == rows
    assert all((tmp_path / path).is_file() for path in paths)
    assert len(table.column("group").unique()) == math.ceil(rows / manifest_ranks.ROWS_OF_GROUP)


def test_an_epoch_of_the_loader_reads_all_training_images(tmp_path):
    dataset = loader_workers.dataset_of(loader_workers.write_manifest(tmp_path, 40))
    loader = loader_workers.make_loader(dataset, 4, 0, False, None, None)
    assert loader_workers.epoch(loader) == len(dataset) == 38
    speed = loader_workers.speed_of(dataset, 0, False, rounds=1, seconds=0.001)
    assert min(speed) > 0
