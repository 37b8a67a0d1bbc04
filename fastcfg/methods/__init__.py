"""Guidance that is no rule: attention, logits, classifiers, thresholds, histories and training with dropout."""
