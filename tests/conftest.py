"""What every Python test gets: the harness on the path, and an end to every test."""

import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

# A test that takes longer hangs; one that needs more says so: @pytest.mark.timeout_s(600).
TEST_TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def _bounded(request):
    """Raises inside a test that runs too long, so that its fixtures still clean up."""
    marker = request.node.get_closest_marker("timeout_s")
    seconds = marker.args[0] if marker else TEST_TIMEOUT_S

    def expired(*_):
        raise TimeoutError(f"the test took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
