"""The cells of a study: what one run is given, and how a grid spreads into them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from platon_prune.studies.settings import without_folders

# Criteria whose name once meant other scores: their cells are others than those of that time.
_MEANT_ANEW: dict[str, dict[str, Any]] = {"movement": {"fades": True}}
DENSE = "dense"  # stands among the criteria for a model that is not pruned


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        recipe: Name of the recipe.
        criterion: How weights are scored, or "dense"; empty in a study that does not vary it.
        amount: Fraction pruned in the end; 0 for "dense".
        seed: Of everything that is drawn.
        options: Those that differ from the recipe's defaults.
        settings: All else that decides the numbers; plain values.
    """

    recipe: str
    criterion: str
    amount: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name for the cell that is the same in every study with the same settings.

        Of paths in the settings only the last part counts, beside what their files hold, so that
        folders of several machines can be joined.
        """
        named = asdict(self) | {"settings": without_folders(self.settings)}
        named |= _MEANT_ANEW.get(self.criterion, {})
        # Sorted: the same options in another order are the same cell.
        text = json.dumps(named, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Criterion and options, in words."""
        return label_of(self.criterion, self.options)

    @property
    def name(self) -> str:
        """All that tells the cell from others of its study, in words."""
        return f"{self.label}, amount {self.amount:g}, seed {self.seed}"


def label_of(criterion: str, options: Mapping[str, Any]) -> str:
    """Criterion and options as ``platon, window=1``; "all" where there is neither."""
    named = [f"{name}={shown(options[name])}" for name in sorted(options)]
    return ", ".join([*([criterion] if criterion else []), *named]) or "all"


def shown(value: Any) -> str:
    """The value of an option as it is typed: a text as it is, and true, not True."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Workspace:
    """Where a cell runs.

    Args:
        folder: Of the study; a recipe keeps there what several cells need.
        device: "cpu" or "cuda".
    """

    folder: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Option:
    """What a cell may be given beside criterion, amount and seed.

    Args:
        default: Its value where it is not given; cells with it and without are the same cell.
        choices: All values there are; none means any of its kind.
        kind: bool, int, str or float (which a whole number is as well); the default's type if None.
    """

    default: Any = None
    choices: tuple[Any, ...] = ()
    kind: type | None = None

    def with_default(self, default: Any) -> Option:
        """The same with another default, or with None for one that is not known."""
        return replace(self, default=default, kind=self.kind or type(self.default))


@dataclass(frozen=True)
class Recipe:
    """Something that can be trained and pruned with the settings of a cell.

    Args:
        name: As given to ``--recipe``.
        run: Trains, and returns what was measured; called again from the start if it was killed.
        metric: Which of the measured values the study is about; None for the first of them.
        title: What that is, for tables and axes.
        columns: Other measured values for the table, with their headings.
        options: What a grid may vary.
        extras: Modules that must be importable.
        settings: From ``--steps`` (None: the recipe's own) and the flags after ``--`` to the
            settings of every cell; a ValueError says what can't be used.
        defaults: From those settings to the options whose default they change; None for one that
            is not known.
        check: Raises a ValueError that says what must hold for a cell to run.
        is_percent: Whether the metric is in percent.
        counted: What an amount is a fraction of.
        has_amounts: Whether the cells differ in what is pruned.
        shared_options: Options of the training rather than of the pruning: a dense model and rivals
            have them too.
        chosen_by: The measured value by which the best of an option's values is chosen; None for
            the metric.
        lower_is_better: Whether low values of it and of the metric are the good ones.
        rivals: What may stand among the criteria beside those of the package, methods of others,
            and the options of pruning that each knows.
        subject: From the settings of the cells to what pictures are of, in a few words.
        speeds: Measured values that are times as fast as dense, each with what was run, in words:
            a picture has the metric against them.
    """

    name: str
    run: Callable[[Cell, Workspace], Mapping[str, float]]
    metric: str | None = "accuracy"
    title: str = "accuracy (%)"
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    settings: Callable[[int | None, Sequence[str]], dict[str, Any]] = lambda steps, flags: {}
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
    check: Callable[[Cell], None] = lambda cell: None
    is_percent: bool = True
    counted: str = "weights"
    has_amounts: bool = True
    shared_options: tuple[str, ...] = ()
    chosen_by: str | None = None
    lower_is_better: bool = False
    rivals: Mapping[str, Sequence[str]] = field(default_factory=dict)
    subject: Callable[[Mapping[str, Any]], str] | None = None
    speeds: Mapping[str, str] = field(default_factory=dict)

    def shown(self, value: float, sign: str = "") -> str:
        """A value of the metric: percentages with one decimal, others with four digits."""
        return f"{value:{sign}.1f}" if self.is_percent else f"{value:{sign}.4g}"

    def about(self, cells: Sequence[Cell]) -> str:
        """What a picture of these cells is of, in a few words."""
        return self.subject(cells[0].settings) if self.subject and cells else self.name

    def options_of(self, criterion: str) -> tuple[str, ...]:
        """The options that change something for a criterion, "dense" or a rival."""
        if criterion == DENSE or criterion in self.rivals:
            return (*self.shared_options, *self.rivals.get(criterion, ()))
        return tuple(self.options)

    def given(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with the defaults that its options have under these settings."""
        changed = self.defaults(settings)
        options = {
            name: option.with_default(changed.get(name, option.default))
            for name, option in self.options.items()
        }
        return replace(self, options=options)


@dataclass(frozen=True)
class Grid:
    """Cells to run: all combinations of what is listed, seeds the quickest to change.

    Args:
        criteria: Names; "dense" is one cell per seed, whatever the amounts and the options of
            pruning.
        amounts: Fractions to prune, each in (0, 1).
        seeds: Whole numbers.
        options: Name of an option to the values it takes.
        one_by_one: Whether only one option at a time leaves its default, and none of them does in
            one more row, instead of all combinations.
    """

    criteria: tuple[str, ...] = ("platon", "magnitude")
    amounts: tuple[float, ...] = (0.9, 0.98)
    seeds: tuple[int, ...] = (0, 1, 2)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    one_by_one: bool = False

    def cells(self, recipe: Recipe, settings: Mapping[str, Any]) -> list[Cell]:
        """Every cell once, those with options at their default as cells without."""
        found: dict[str, Cell] = {}
        for criterion in self.criteria:
            known = recipe.options_of(criterion)
            # Of a dense model nothing is pruned, so amounts have nothing to change.
            for amount in (0.0,) if criterion == DENSE else self.amounts:
                for options in self._variants(recipe, known):
                    for seed in self.seeds:
                        cell = Cell(recipe.name, criterion, amount, seed, options, settings)
                        found.setdefault(cell.key, cell)
        return list(found.values())

    def _variants(self, recipe: Recipe, known: Sequence[str]) -> Iterator[dict[str, Any]]:
        varied = {name: values for name, values in self.options.items() if name in known}
        if self.one_by_one:
            pairs = [(name, value) for name, values in varied.items() for value in values]
            chosen = [{}, *({name: value} for name, value in pairs)]
        else:
            combinations = itertools.product(*varied.values())
            chosen = [dict(zip(varied, values, strict=True)) for values in combinations]
        for options in chosen:
            # A default that is spelled out names the same cell as one that is not.
            yield {k: v for k, v in options.items() if v != recipe.options[k].default}


def check(grid: Grid, recipe: Recipe, criteria: Sequence[str]) -> None:
    """Raise a ValueError that says what of a grid can't be used.

    Args:
        grid: What was asked for.
        recipe: Which knows its options.
        criteria: Names that may be given beside "dense".
    """
    known = (DENSE, *criteria, *recipe.rivals)
    for name in grid.criteria:
        if name not in known:
            raise ValueError(f"--criteria must be among {', '.join(known)}; got {name!r}")
    for amount in grid.amounts:
        if not 0 < amount < 1:
            raise ValueError(
                f"--amounts must be above 0 and below 1, got {amount}: they are fractions of the "
                'weights to prune; for a model that is not pruned, give "dense" as a criterion'
            )
    for seed in grid.seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"--seeds must be from 0 to 2**32 - 1, got {seed}: choose another")
    for name, values in grid.options.items():
        if name not in recipe.options:
            raise ValueError(
                f"--option must be one of {recipe.name}'s ({', '.join(recipe.options)}), got "
                f"{name!r}"
            )
        for value in values:
            _check_value(name, value, recipe.options[name])


def _check_value(name: str, value: Any, option: Option) -> None:
    kind = option.kind or type(option.default)
    if option.choices:
        fits, wanted = value in option.choices, f"one of {', '.join(map(str, option.choices))}"
    elif kind is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind is int:
        # To Python, True is a whole number.
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif kind is str:
        fits, wanted = isinstance(value, str), "text"
    else:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        wanted = "a number"
    if not fits:
        raise ValueError(f"--option {name} must be {wanted}, got {shown(value)}")


def read_options(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """``["window=1,10", "masking=step"]`` as names and values.

    Numbers, ``true`` and ``false`` are what they look like; anything else is text.

    Raises:
        ValueError: If a text has no ``=``, no value, or a name comes twice.
    """
    options: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not name or not values:
            raise ValueError(
                f"--option must be NAME=VALUE[,VALUE...], such as window=1,10, got {text!r}"
            )
        if name in options:
            raise ValueError(f"--option {name} must be given once, with all its values: got two")
        options[name] = tuple(_value(part) for part in values.split(","))
    return options


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    # JSON would make lists and null of texts that look like them.
    return value if isinstance(value, (bool, int, float)) else text
