"""Tests under ``emulated`` need the software GPU in their process, and the test that starts such processes does not."""

import os

collect_ignore = ["test_software_gpu.py"] if os.environ.get("FASTCFG_SOFTWARE_GPU") else ["emulated"]
