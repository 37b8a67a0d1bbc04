"""Rules in classic pipelines, whose guidance is inlined."""
