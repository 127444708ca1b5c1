import pytest

from tests.soak import soak


@pytest.mark.slow
def test_a_fit_killed_at_random_moments_ends_as_one_left_alone(tmp_path):
    kills = soak(tmp_path, kills=4, seed=0, epochs=20)
    assert kills.hit == 4
    assert kills.after_progress
