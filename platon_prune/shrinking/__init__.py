"""Pruned groups are cut out of the model."""
