"""diffusers' own fast tests as ours: a checkout's tiny pipelines, each beside itself under ``guided`` and ``fuse``.

    python -m benchmarks.hosts DIFFUSERS_CHECKOUT [--only wan] [--out benchmarks/results]

It takes the components and inputs of the checkout's fast tests, and none of its code.
"""
