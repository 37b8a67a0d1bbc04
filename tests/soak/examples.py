"""How long the soak tests run: a moment in ``make test``, and ``SOAK`` examples of each in ``make soak``."""

import os

from hypothesis import HealthCheck, settings

SOAK = int(os.environ.get("SOAK", "0"))
"""Examples of each test; 0 is the short run."""

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("soak", deadline=None, print_blob=True, suppress_health_check=quiet, database=None)


def examples(short: int, share: float = 1.0) -> settings:
    """Settings of a test: so many examples in the short run, and a share of :data:`SOAK` in the long one."""
    if not SOAK:
        return settings(settings.get_profile("soak"), max_examples=short, derandomize=True)
    return settings(settings.get_profile("soak"), max_examples=max(1, int(SOAK * share)))
