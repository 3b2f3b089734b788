"""Sparse files: a finalized model is saved with its zeros as bits, loaded again and inspected."""

from platon_prune.export.files import load as load
from platon_prune.export.files import load_into as load_into
from platon_prune.export.files import save as save
