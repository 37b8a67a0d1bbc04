"""Raises ImportError: telemetry was replaced by stats."""

raise ImportError('fastcfg.telemetry was replaced by guide(..., stats=("delta_ratio", ...), stats_out=tensor)')
