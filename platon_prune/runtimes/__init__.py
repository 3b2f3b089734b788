"""Faster forms of a finalized model."""
