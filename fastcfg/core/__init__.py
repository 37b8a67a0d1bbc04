"""Guidance on tensors: one call, one step, frames, state and conditions."""
