"""What must hold after hours of use: ``python -m benchmarks.reliability``.

Random calls beside float64 oracles, many threads and processes at once, memory over 10^5 calls, work that is killed
half-way, and files that are damaged. Each run is a module here; the tests run the same ones for seconds.
"""

import sys
from pathlib import Path

# The float64 oracles, which are written apart from the rules, belong to the tests.
_TESTS = str(Path(__file__).resolve().parents[2] / "tests")
if _TESTS not in sys.path:
    sys.path.append(_TESTS)
