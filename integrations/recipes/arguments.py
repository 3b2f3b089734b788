"""The flags that all recipes share: the model, the pruning, the teacher, and the training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from platon_prune import CriterionName, Masking, ScheduleName, Scope
from platon_prune.integrations.recipes.fields import count_or_fraction, initial_amount, setting

ADAMAX = "adamax"
MASKS_FILE = "masks.bin"
SHRUNK = "shrunk"
KINDS = ("heads", "neurons", "channels", "experts", "blocks")
ZEROS = "zeros"
UNSTRUCTURED, SEMI_STRUCTURED, STRUCTURED = "unstructured", "semi_structured", "structured"
# Of what is pruned by default where that is no single weights.
DEFAULT_AMOUNTS = {SEMI_STRUCTURED: 1.0, STRUCTURED: 0.5}


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    _argument_group_name = "model"

    model_name_or_path: str | None = setting(
        "Model to fine-tune: a folder that save_pretrained wrote, or a name on the Hub (required)."
    )
    config_name: str | None = setting("Config, if it is not the model's.")
    tokenizer_name: str | None = setting(
        "Tokenizer (image: image processor), if it is not the model's."
    )
    cache_dir: str | None = setting("Where downloads are kept.")
    model_revision: str = setting("Branch, tag or commit of a model on the Hub.", "main")
    trust_remote_code: bool = setting("Whether code that comes with a model may be run.", False)
    ignore_mismatched_sizes: bool = setting(
        "Give the model a new head if its own has another number of labels.", False
    )
    dropout: float | None = setting(
        "Share of values that each dropout of the model drops while it trains, in [0, 1), instead "
        "of what its config says."
    )

    def __post_init__(self) -> None:
        # Written so that NaN is refused too.
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be in [0, 1), got {self.dropout}")

    def loading(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained``."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass
class PruningArguments:
    """How the model is pruned while it is fine-tuned; no name of TrainingArguments is taken."""

    _argument_group_name = "pruning"

    preset: str | None = setting(
        "The authors' settings for a task and a density in percent, such as mnli-10; flags that "
        "are given win. The docs have the table, and an unknown name lists them."
    )
    amount: float = setting(
        "What is pruned in the end: a fraction of the selected weights below 1, or a count; 0 "
        "trains a dense model.",
        0.9,
        aliases=["--pruning_amount", "--amounts"],
    )
    criterion: CriterionName = setting(
        "How weights are scored.", "platon", aliases=["--pruning_criterion"]
    )
    pruning_warmup_steps: float = setting(
        "Optimizer steps before pruning starts, t_i: a count, or a fraction of the run below 1.",
        0.1,
    )
    pruning_cooldown_steps: float = setting(
        "Optimizer steps at the end with the final amount, t_f: a count, or a fraction below 1.",
        0.3,
    )
    pruning_initial_amount: str = setting(
        "What is pruned when the ramp starts: a fraction or a count; or zeros, to begin with what "
        "is zero in the model already and prune on from there.",
        "0",
    )
    pruning_schedule: ScheduleName = setting(
        "How the amount grows on the ramp, from t_i to T - t_f; once: all of it in one choice, at "
        "the first window's end after the warm-up.",
        "cubic",
    )
    pruning_beta1: float = setting("Share of the old sensitivity that a window keeps.", 0.85)
    pruning_beta2: float = setting("Share of the old uncertainty that a window keeps.", 0.95)
    pruning_window: int = setting("Optimizer steps between two choices of the mask.", 10)
    pruning_masking: Masking = setting(
        "step: pruned weights stay zero between choices; window: they train until the next one.",
        "step",
    )
    pruning_granularity: Literal["unstructured", "semi_structured", "structured"] = setting(
        "What goes: single weights, all but n of every m neighbours, or heads, neurons and "
        "channels. --amount is 1 by default for n of m, and 0.5 for the latter.",
        UNSTRUCTURED,
    )
    pruning_n: int = setting("Of every --pruning_m neighbours, how many stay.", 2)
    pruning_m: int = setting("How many neighbours make a group.", 4)
    pruning_state_dtype: Literal["float32", "bfloat16"] = setting(
        "Numbers that scores are kept in: float32, 13 bytes a weight, or bfloat16, 7 bytes.",
        "float32",
    )
    pruning_offload_averages: bool = setting(
        "Keep averages of scores in the memory of the host; slower.", False
    )
    pruning_include: list[str] | None = setting(
        "Parts of parameter names: what has one of them is pruned, biases too, instead of the "
        "weights of linear and convolution layers of the body."
    )
    pruning_exclude: list[str] | None = setting("Parts of parameter names that are left alone.")
    pruning_max_amount: float | None = setting(
        "The largest fraction that a tensor may lose, or for structured a layer of its groups; the "
        "others lose more then. For limits by name, use the Python interface."
    )
    pruning_scope: Scope = setting(
        "global: the smallest scores of all tensors go; layer: those of each, the same fraction of "
        "all. Not for structured.",
        "global",
    )
    pruning_normalizer: Literal["auto", "none", "mean", "cost"] = setting(
        "How groups of different layers are compared, for structured: by their scores; by each "
        "over the mean of its layer (auto: where there are channels); or over what one costs.",
        "auto",
    )
    pruning_budget: Literal["parameters", "macs", "latency"] = setting(
        "What --amount counts, for structured: parameters; or of a batch as it is evaluated, "
        "multiply-adds, or the time that is measured on this machine.",
        "parameters",
    )
    pruning_speedup: float | None = setting(
        "Instead of --amount, how many times as fast the model is to be, such as 1.5; for "
        "--pruning_budget latency."
    )
    metric: str | None = setting(
        "With --max_drop: the metric of the evaluations that may fall so far below the dense "
        "model's, such as eval_accuracy. --amount is then the most that is pruned."
    )
    max_drop: float | None = setting(
        "How much worse than the dense model's the metric may get, in its own unit: the run goes "
        "back where it fell further. It needs --eval_strategy."
    )
    baseline: float | None = setting(
        "The dense model's metric, instead of what is measured at the last step before the ramp."
    )
    patience: int = setting("How many evaluations in a row must be too bad.", 1)
    pruning_kinds: list[str] | None = setting(
        "Which of heads, neurons, channels and experts go, for structured; by default all but the "
        "last."
    )
    shrink: bool = setting(
        "Once trained, also cut out what structured pruning left nothing of, and save the smaller "
        f"model to {SHRUNK} in --output_dir.",
        False,
    )
    pruning_mask_history: bool = setting(
        f"Keep the masks of every choice, in {MASKS_FILE} of --output_dir.", False
    )

    def __post_init__(self) -> None:
        self._check_budget()
        self._check_granularity()
        self._check_goal()
        if self.initial_amount == ZEROS and self.pruning_masking != "step":
            raise ValueError(
                f"--pruning_masking must be step for --pruning_initial_amount zeros, got "
                f"{self.pruning_masking}, which would let the zeros train until the first choice"
            )
        if self.pruning_max_amount is not None and not 0 <= self.pruning_max_amount <= 1:
            raise ValueError(
                f"--pruning_max_amount must be a fraction in [0, 1], got {self.pruning_max_amount}"
            )
        for name in ("pruning_warmup_steps", "pruning_cooldown_steps"):
            setattr(self, name, count_or_fraction(name, getattr(self, name), "of the run"))
        if self.pruning_window < 1:
            raise ValueError(f"--pruning_window must be at least 1, got {self.pruning_window}")
        for name in ("pruning_beta1", "pruning_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must be in [0, 1), got {getattr(self, name)}")
        if self.pruning_beta1 == 0 and self.criterion == "platon" and not self.is_dense:
            raise ValueError(
                "--pruning_beta1 must be above 0 for --criterion platon, got 0, which makes all of "
                "its scores 0: give one such as 0.85, or --criterion sensitivity"
            )

    def _check_budget(self) -> None:
        if self.pruning_speedup is None:
            return
        if self.pruning_budget != "latency":
            raise ValueError(
                "--pruning_speedup must go with --pruning_budget latency, got "
                f"{self.pruning_budget}: only measured times tell how fast a model is"
            )
        if not 1 < self.pruning_speedup < math.inf:
            raise ValueError(
                f"--pruning_speedup must be a number above 1, got {self.pruning_speedup}: 1.5 "
                "leaves two thirds of the time"
            )
        self.amount = 1 - 1 / self.pruning_speedup  # of the time; for titles and reports

    def _check_granularity(self) -> None:
        for flag, is_given in (
            (f"--pruning_normalizer {self.pruning_normalizer}", self.pruning_normalizer != "auto"),
            (f"--pruning_kinds {' '.join(self.pruning_kinds or ())}", self.pruning_kinds),
            (f"--pruning_budget {self.pruning_budget}", self.pruning_budget != "parameters"),
            ("--shrink", self.shrink),
        ):
            if is_given and self.pruning_granularity != STRUCTURED:
                raise ValueError(
                    f"{flag} must go with --pruning_granularity {STRUCTURED}, got "
                    f"{self.pruning_granularity}: leave one of them out"
                )
        if unknown := set(self.pruning_kinds or ()) - set(KINDS):
            raise ValueError(
                f"--pruning_kinds must be some of {', '.join(KINDS)}; got "
                f"{', '.join(sorted(unknown))}"
            )
        if self.pruning_granularity == UNSTRUCTURED:
            self.amount = count_or_fraction("amount", self.amount, "of the weights")
            return
        what = self.pruning_granularity
        most = 1 if what == SEMI_STRUCTURED else math.nextafter(1, 0)
        if not 0 <= self.amount <= most:
            raise ValueError(
                f"--amount must be a fraction in [0, 1{']' if most == 1 else ')'} for "
                f"--pruning_granularity {what}, got {self.amount}"
            )
        for flag, is_given, others in (
            (
                "--pruning_max_amount",
                self.pruning_max_amount is not None and what == SEMI_STRUCTURED,
                f"{UNSTRUCTURED} or {STRUCTURED}",
            ),
            (
                f"--pruning_scope {self.pruning_scope}",
                self.pruning_scope != "global" and what == STRUCTURED,
                f"{UNSTRUCTURED} or {SEMI_STRUCTURED}",
            ),
            (
                f"--pruning_initial_amount {ZEROS}",
                self.pruning_initial_amount == ZEROS,
                UNSTRUCTURED,
            ),
        ):
            if is_given:
                raise ValueError(
                    f"{flag} must go with --pruning_granularity {others}, got {what}: leave one "
                    "of them out"
                )

    def _check_goal(self) -> None:
        if (self.metric is None) != (self.max_drop is None):
            given, lacks = ("max_drop", "metric") if self.metric is None else ("metric", "max_drop")
            raise ValueError(
                f"--metric and --max_drop must be given together, got --{given} alone: add "
                f"--{lacks}"
            )
        for name, default in (("baseline", None), ("patience", 1)):
            if self.max_drop is None and getattr(self, name) != default:
                raise ValueError(
                    f"--{name} must go with --metric and --max_drop, got it without: say how far "
                    "which metric may fall"
                )
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ValueError(f"--max_drop must be at least 0 and finite, got {self.max_drop}")
        if self.patience < 1:
            raise ValueError(f"--patience must be at least 1, got {self.patience}")

    @property
    def initial_amount(self) -> int | float | str:
        """What is pruned when the ramp starts: a count, a fraction, or "zeros"."""
        if self.pruning_initial_amount == ZEROS:
            return ZEROS
        return initial_amount(self.pruning_initial_amount)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.amount == 0

    def callback(self, output_dir: str | None = None) -> dict[str, Any]:
        """Arguments for ``PlatonCallback``.

        Args:
            output_dir: The folder of the run, where masks are kept if that is asked for.
        """
        names = [
            "warmup_steps", "cooldown_steps", "beta1", "beta2", "window", "masking", "include",
            "exclude",
        ]  # fmt: skip
        settings = {name: getattr(self, f"pruning_{name}") for name in names}
        settings["initial_amount"] = self.initial_amount
        if self.pruning_max_amount is not None:
            settings["max_amount"] = self.pruning_max_amount
        if self.pruning_scope != "global":
            settings["scope"] = self.pruning_scope
        if self.pruning_schedule != "cubic":
            settings["schedule"] = self.pruning_schedule
        if self.pruning_mask_history:
            settings["mask_history"] = Path(output_dir or ".", MASKS_FILE)
        if self.pruning_granularity != UNSTRUCTURED:
            settings["granularity"] = self.pruning_granularity
        if self.pruning_kinds:
            settings["kinds"] = self.pruning_kinds
        if self.pruning_normalizer != "auto":
            settings["normalizer"] = self.pruning_normalizer
        if self.pruning_granularity == SEMI_STRUCTURED:
            settings |= {"n": self.pruning_n, "m": self.pruning_m}
        if self.pruning_state_dtype != "float32":
            settings["state_dtype"] = getattr(torch, self.pruning_state_dtype)
        if self.pruning_offload_averages:
            settings["offload_averages"] = True
        if self.pruning_budget != "parameters":
            settings["budget"] = self.pruning_budget
        if self.pruning_speedup is not None:
            settings["speedup"] = self.pruning_speedup
        if self.max_drop is not None:
            settings |= {name: getattr(self, name) for name in ("metric", "max_drop", "patience")}
        if self.baseline is not None:
            settings["baseline"] = self.baseline
        amount = self.amount if self.pruning_speedup is None else None
        return {"amount": amount, "criterion": self.criterion, **settings}


@dataclass
class DistillationArguments:
    """The dense model that the pruned one learns from, if there is one."""

    _argument_group_name = "distillation"

    teacher_name_or_path: str | None = setting(
        "Fine-tuned dense model of the same task and vocabulary to learn from: a folder or a name."
    )
    distillation_temperature: float = setting(
        "Divides the logits of both models before they are compared; above 0.", 2.0
    )
    distillation_weight: float = setting(
        "Share of the teacher in the loss, in [0, 1]; the rest is the loss of the labels.", 0.5
    )

    def __post_init__(self) -> None:
        if not self.distillation_temperature > 0:
            raise ValueError(
                "--distillation_temperature must be above 0, got "
                f"{self.distillation_temperature}: 1 compares plain probabilities"
            )
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(
                f"--distillation_weight must be in [0, 1], got {self.distillation_weight}: 1 "
                "learns from the teacher alone"
            )


@dataclass
class RecipeTrainingArguments(TrainingArguments):
    """transformers' own arguments, with one more optimizer for ``--optim``: adamax."""

    _argument_group_name = "training (transformers' TrainingArguments)"

    optim: str = setting(
        "Optimizer: adamw_torch, adamw_torch_fused, adafactor, sgd, ... (transformers' "
        "OptimizerNames), or adamax.",
        "adamw_torch_fused",
    )

    def __post_init__(self) -> None:
        # transformers checks the name against its own list, which has no adamax.
        uses_adamax = self.optim == ADAMAX
        if uses_adamax:
            self.optim = "adamw_torch"  # a name that the check below knows
        super().__post_init__()  # type: ignore[no-untyped-call]
        if uses_adamax:
            self.optim = ADAMAX
