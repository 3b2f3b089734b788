"""PLATON pruning for PyTorch: keep weights by the upper confidence bound of their importance."""

from platon_prune import compat, integrations, plots
from platon_prune.criteria import (
    Criterion,
    CriterionName,
    Fisher,
    Magnitude,
    Movement,
    Platon,
    Random,
    ScaledMagnitude,
    Sensitivity,
)
from platon_prune.deploy import deploy_report
from platon_prune.deploy.report import DeployReport, FileSize, FormRow, Times
from platon_prune.export import load, load_into, save
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.find import find_groups
from platon_prune.history.history import Choice, History
from platon_prune.history.mask_history import MaskHistory
from platon_prune.masks.method import Masking, PlatonUnstructured
from platon_prune.pruning.finalize import apply_masks, remove
from platon_prune.pruning.learning import learn_scores
from platon_prune.pruning.semi_structured import semi_structured
from platon_prune.pruning.structured import global_structured
from platon_prune.pruning.unstructured import adopt_zeros, global_unstructured
from platon_prune.reports.n_of_m_patterns import check_semi_structured
from platon_prune.reports.structure import PlaceSummary, Structure, structure
from platon_prune.reports.summary import Summary, TensorSummary, summary
from platon_prune.runtimes.semi_structured_inference import to_semi_structured
from platon_prune.runtimes.sparse_inference import (
    LayerChoice,
    SparseReport,
    to_sparse_inference,
)
from platon_prune.schedule import (
    CubicSchedule,
    ExponentialSchedule,
    LinearSchedule,
    OnceSchedule,
    RampSchedule,
    Schedule,
    ScheduleName,
)
from platon_prune.scheduling.memory import Memory
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.shrinking.shrink import PlaceReport, ShrinkReport, shrink
from platon_prune.studies.own import study
from platon_prune.version import __version__
from platon_prune.warning import PruningWarning

__all__ = [
    "Choice",
    "CoupledGroups",
    "Criterion",
    "CriterionName",
    "CubicSchedule",
    "DeployReport",
    "ExponentialSchedule",
    "FileSize",
    "Fisher",
    "FormRow",
    "History",
    "LayerChoice",
    "LinearSchedule",
    "Magnitude",
    "MaskHistory",
    "Masking",
    "Memory",
    "Movement",
    "OnceSchedule",
    "PlaceReport",
    "PlaceSummary",
    "Platon",
    "PlatonScheduler",
    "PlatonUnstructured",
    "PruningWarning",
    "RampSchedule",
    "Random",
    "ScaledMagnitude",
    "Schedule",
    "ScheduleName",
    "Sensitivity",
    "ShrinkReport",
    "SparseReport",
    "Structure",
    "Summary",
    "TensorSummary",
    "Times",
    "__version__",
    "adopt_zeros",
    "apply_masks",
    "check_semi_structured",
    "compat",
    "deploy_report",
    "find_groups",
    "global_structured",
    "global_unstructured",
    "integrations",
    "learn_scores",
    "load",
    "load_into",
    "plots",
    "remove",
    "save",
    "semi_structured",
    "shrink",
    "structure",
    "study",
    "summary",
    "to_semi_structured",
    "to_sparse_inference",
]


def __dir__() -> list[str]:
    # Without this, the wings of the package would be shown beside what users call.
    return __all__
