"""PLATON pruning for PyTorch: keep weights by the upper confidence bound of their importance."""

from platon_prune import compat as compat
from platon_prune.api import adopt_zeros as adopt_zeros
from platon_prune.api import apply_masks as apply_masks
from platon_prune.api import global_unstructured as global_unstructured
from platon_prune.api import remove as remove
from platon_prune.coupled import CoupledGroups as CoupledGroups
from platon_prune.deploy import deploy_report as deploy_report
from platon_prune.export import load as load
from platon_prune.export import load_into as load_into
from platon_prune.export import save as save
from platon_prune.export import to_semi_structured as to_semi_structured
from platon_prune.export import to_sparse_inference as to_sparse_inference
from platon_prune.groups import find_groups as find_groups
from platon_prune.mask_history import MaskHistory as MaskHistory
from platon_prune.method import PlatonUnstructured as PlatonUnstructured
from platon_prune.notices import PruningWarning as PruningWarning
from platon_prune.patterns import check_semi_structured as check_semi_structured
from platon_prune.scheduler import PlatonScheduler as PlatonScheduler
from platon_prune.semi_structured import semi_structured as semi_structured
from platon_prune.shrink import shrink as shrink
from platon_prune.structure import structure as structure
from platon_prune.structured import global_structured as global_structured
from platon_prune.summary import summary as summary
from platon_prune.version import __version__ as __version__
