"""PLATON pruning for PyTorch: keep weights by the upper confidence bound of their importance."""

from platon_prune import compat as compat
from platon_prune.api import adopt_zeros as adopt_zeros
from platon_prune.api import apply_masks as apply_masks
from platon_prune.api import global_unstructured as global_unstructured
from platon_prune.api import remove as remove
from platon_prune.export import load as load
from platon_prune.export import save as save
from platon_prune.export import to_sparse_inference as to_sparse_inference
from platon_prune.mask_history import MaskHistory as MaskHistory
from platon_prune.method import PlatonUnstructured as PlatonUnstructured
from platon_prune.scheduler import PlatonScheduler as PlatonScheduler
from platon_prune.scheduler import PruningWarning as PruningWarning
from platon_prune.summary import summary as summary
from platon_prune.version import __version__ as __version__
