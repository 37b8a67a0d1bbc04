"""Guiders for modular pipelines: fused counterparts of diffusers' own, and those by any rule."""
