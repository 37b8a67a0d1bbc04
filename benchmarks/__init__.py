"""fastcfg beside its peers: ``fastcfg bench``, or ``pytest benchmarks/bench_guidance.py``."""

import os

# A waiting OpenMP thread spins by default, which on a small or shared machine takes the core from the one that works.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# transformers says of each image processor that torchvision is not installed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
