import signal

import pytest

from tests.soak import soak

MANY = [
    pytest.param(signal.SIGKILL, 20, 40, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGTERM, 2, 8, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGTERM, 10, 40, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("number", "kills", "epochs"), [(signal.SIGKILL, 3, 8), *MANY])
def test_a_fit_ended_at_random_moments_ends_as_one_left_alone(number, kills, epochs, tmp_path):
    met = soak(tmp_path, kills, seed=0, epochs=epochs, number=number)
    assert met.hit >= kills
    assert met.after_progress
