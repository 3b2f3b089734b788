"""Adapters to training frameworks; they use only what a user could import."""
