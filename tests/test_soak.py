import signal

import pytest

from tests.soak import soak


@pytest.mark.parametrize(("number", "kills"), [(signal.SIGKILL, 4), (signal.SIGTERM, 3)])
def test_a_fit_ended_at_random_moments_ends_as_one_left_alone(number, kills, tmp_path):
    met = soak(tmp_path, kills, seed=0, epochs=20, number=number)
    assert met.hit >= kills
    assert met.after_progress
