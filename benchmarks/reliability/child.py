"""The process that :mod:`benchmarks.reliability.isolation` makes cases in: MODULE SECONDS SEED START MOST."""

import os
import sys
import warnings

from .isolation import speak


def main() -> None:
    """Say what is begun and what came of it on what was standard output; all else that prints goes to the errors."""
    module, seconds, seed, start, most = sys.argv[1:]
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    speak(
        module, float(seconds), int(seed), int(start), int(most) if most else None, lambda line: print(line, file=said)
    )


if __name__ == "__main__":
    main()
