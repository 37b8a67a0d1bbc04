#!/usr/bin/env bash
# Triton: a kernel argument named `params` can't hold a tuple (or anything else) at a launch.
#
# Versions: triton 3.9.0 (3.6.0 and 3.7.0 do the same), Python 3.10 to 3.12, Linux. No GPU is needed.
# Expected: the name of an argument means nothing; the same kernel with another name works.
# Seen: Triton writes a Python function that binds a launch's arguments, with a local variable `params` of its own. It
#   shadows the argument before its type is worked out: "failed to specialize argument of type: dict". The interpreter and
#   ahead-of-time compilation do not pass the binder, so that a kernel tested by them fails at its first launch.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet triton==3.9.0
cat > "$place/see.py" <<'PYTHON'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


@triton.jit
def named_values(out, values):
    tl.store(out, values[0])


@triton.jit
def named_params(out, params):
    tl.store(out, params[0])


def bind(kernel, **arguments):
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    try:
        return str(binder(out=1 << 40, **arguments)[1][1])
    except TypeError as error:
        return f"TypeError: {error}"


good, bad = bind(named_values, values=(2.0,)), bind(named_params, params=(2.0,))
print(f"triton {triton.__version__}\nargument `values`: {good}\nargument `params`: {bad}")
raise SystemExit(not ("fp32" in good and bad == "TypeError: failed to specialize argument of type: dict"))
PYTHON
"$place/venv/bin/python" "$place/see.py"
