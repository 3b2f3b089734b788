"""PLATON pruning for PyTorch: keep weights by the upper confidence bound of their importance.

A name is loaded on its first use, so that the command line answers before torch is loaded.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from platon_prune.version import __version__

if TYPE_CHECKING:
    from platon_prune import compat, integrations, plots
    from platon_prune.choice.granularity import Scope
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
    from platon_prune.deploy.report import DeployReport
    from platon_prune.deploy.rows import FileSize, FormRow, Times
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
    from platon_prune.runtimes.semi_structured_inference import (
        ConvertedLayer,
        SemiStructuredReport,
        to_semi_structured,
    )
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
    from platon_prune.warning import PruningWarning

__all__ = [
    "Choice",
    "ConvertedLayer",
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
    "Scope",
    "SemiStructuredReport",
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

# What the block above says, for who runs it: module below the package, and its names.
_NAMES = {
    "choice.granularity": "Scope",
    "criteria": (
        "Criterion CriterionName Fisher Magnitude Movement Platon Random ScaledMagnitude "
        "Sensitivity"
    ),
    "deploy": "deploy_report",
    "deploy.report": "DeployReport",
    "deploy.rows": "FileSize FormRow Times",
    "export": "load load_into save",
    "groups.coupled": "CoupledGroups",
    "groups.find": "find_groups",
    "history.history": "Choice History",
    "history.mask_history": "MaskHistory",
    "masks.method": "Masking PlatonUnstructured",
    "pruning.finalize": "apply_masks remove",
    "pruning.learning": "learn_scores",
    "pruning.semi_structured": "semi_structured",
    "pruning.structured": "global_structured",
    "pruning.unstructured": "adopt_zeros global_unstructured",
    "reports.n_of_m_patterns": "check_semi_structured",
    "reports.structure": "PlaceSummary Structure structure",
    "reports.summary": "Summary TensorSummary summary",
    "runtimes.semi_structured_inference": "ConvertedLayer SemiStructuredReport to_semi_structured",
    "runtimes.sparse_inference": "LayerChoice SparseReport to_sparse_inference",
    "schedule": (
        "CubicSchedule ExponentialSchedule LinearSchedule OnceSchedule RampSchedule Schedule "
        "ScheduleName"
    ),
    "scheduling.memory": "Memory",
    "scheduling.scheduler": "PlatonScheduler",
    "shrinking.shrink": "PlaceReport ShrinkReport shrink",
    "studies.own": "study",
    "warning": "PruningWarning",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


# Hidden from type checkers, to which a name that does not exist must stay an error.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            value = import_module(f"{__name__}.{name}")  # a module, such as criteria
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Kept, so that the next use is an ordinary attribute.
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    # Without this, the wings of the package would be shown beside what users call.
    return __all__
