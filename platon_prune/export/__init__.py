"""Forms in which a finalized model is deployed: files that keep the zeros as bits, CSR layers."""

from platon_prune.export.files import load as load
from platon_prune.export.files import load_into as load_into
from platon_prune.export.files import save as save
from platon_prune.export.semi_structured_inference import to_semi_structured as to_semi_structured
from platon_prune.export.sparse_inference import to_sparse_inference as to_sparse_inference
