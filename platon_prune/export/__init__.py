"""Sparse models on disk: files that keep the zeros as bits."""

from platon_prune.export.files import load as load
from platon_prune.export.files import save as save
