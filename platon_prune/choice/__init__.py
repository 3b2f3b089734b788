"""Scores and an amount become masks."""
