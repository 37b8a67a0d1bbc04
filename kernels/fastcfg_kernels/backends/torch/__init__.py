"""The torch backend: Gram sums, weights and combine in torch operations, on any device and under any trace."""
