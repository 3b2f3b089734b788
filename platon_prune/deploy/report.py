"""What was measured of a model's forms: tables, JSON, and which form to use."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from platon_prune.deploy.front import pareto_front
from platon_prune.deploy.rows import FileSize, FormRow
from platon_prune.tables import WIDTH, html_table, rounded, table

# Less may be noise, even between medians that take turns.
WORTHWHILE = 1.1
HOW = {
    "float16": "call model.half()",
    "bfloat16": "call model.bfloat16()",
    "compiled": "call torch.compile(model)",
    "CSR": "load the model and call platon_prune.to_sparse_inference(model)",
    "shrunk": "call platon_prune.shrink(model), and save the result",
    "2:4": "call model.half(), then platon_prune.to_semi_structured(model, inputs)",
    "ONNX Runtime": "platon-prune export MODEL --to onnx",
    "OpenVINO": "platon-prune export MODEL --to openvino",
}
# Where a form's median is so many times its shortest time, something else ran, too.
_BUSY = 2.0
# Runtimes other than torch; forms are called by them.
ELSEWHERE = ("ONNX Runtime", "OpenVINO")


@dataclass(frozen=True)
class DeployReport:
    """The forms of a model side by side; prints as tables with a recommendation.

    Args:
        rows: The forms, "dense" first.
        files: The ways to save it, "dense" first.
        sizes: Labels of the sizes of inputs.
        tolerance: Difference of outputs up to which a form counts as the same model.
        model: Facts about the model.
        machine: The kind of machine.
        versions: Of the libraries that took part.
        metric: What the evaluation function's number is called; None without one.
        greater_is_better: Whether a larger one is better.
    """

    rows: tuple[FormRow, ...]
    files: tuple[FileSize, ...]
    sizes: tuple[str, ...]
    tolerance: float
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    metric: str | None = None
    greater_is_better: bool = True

    def __iter__(self) -> Iterator[FormRow]:
        return iter(self.rows)

    def row(self, name: str) -> FormRow:
        """The form of that name, or a KeyError."""
        return {row.name: row for row in self.rows}[name]

    def speed(self, name: str, size: str) -> float | None:
        """How many times as fast as dense a form is at a size; None if one was not measured."""
        # Of medians: one slow call in a hundred moves no median.
        dense, times = self.row("dense").times.get(size), self.row(name).times.get(size)
        return dense.median / times.median if dense and times else None

    def front(self, cost: str) -> list[str]:
        """The forms that no other one beats in both a cost and the metric: the Pareto front.

        Args:
            cost: "time", which is the median at the last size, or "file".

        Returns:
            Their names, from the least cost to the largest; none without a metric.
        """
        rows = [
            (row.name, cost_of, row.metric)
            for row in self.rows
            if row.metric is not None and (cost_of := self.cost(row, cost)) is not None
        ]
        values = [value for _, _, value in rows]
        front = pareto_front([each for _, each, _ in rows], values, self.greater_is_better)
        return [rows[number][0] for number in front]

    def cost(self, row: FormRow, cost: str) -> float | None:
        """Milliseconds at the last size ("time") or bytes ("file") of a row, if known."""
        if cost == "file":
            return row.file_bytes
        times = row.times.get(self.sizes[-1])
        return times.median if times else None

    @property
    def recommendation(self) -> list[str]:
        """Sentences that say which form to use and why."""
        winners = {size: self._fastest(size) for size in self.sizes}
        busy = [words for size in self.sizes if (words := self._undecided(size))]
        sentences = [self._use(winners)]
        if busy:
            sentences = [f"Machine busy, figures not comparable: {'; '.join(busy)}."]
        elif any(map(_is_elsewhere, winners.values())):
            # Not everybody may add a runtime, so the best form of torch is named as well.
            within = {size: self._fastest(size, within_torch=True) for size in self.sizes}
            sentences.append("Without leaving PyTorch: " + _lower(self._use(within)))
        sentences += [
            f"{row.name} is not the same model: its outputs differ by {row.difference:.2g}."
            for row in self.rows
            if row.difference is not None and not row.rounds_weights and not self._is_same(row)
        ]
        sentences += self._rounded() if self.metric is None else self._fronts()
        smallest = min(self.files, key=lambda file: file.num_bytes)
        share = smallest.num_bytes / self.files[0].num_bytes
        if share < 1 / WORTHWHILE:
            sentences.append(f"Smallest file: {smallest.name}, {share:.3f} of the dense one.")
        return sentences + self._disturbed()

    def __str__(self) -> str:
        forms = [table(self._form_lines())]
        names = [row.name for row in self.rows if row.reason is None]
        # A name that lost its middle would be another form's as well.
        if len(forms[0].splitlines()[0]) > WIDTH or any(name not in forms[0] for name in names):
            forms = [table(self._form_lines(with_times=False)), table(self._time_lines())]
        title = textwrap.fill(self._title(), WIDTH)
        return "\n\n".join(
            [title, *forms, *self._notes(), table(self._file_lines())]
            + ["\n".join(self.recommendation)]
        )

    def _repr_html_(self) -> str:
        texts = [f"<p>{html.escape(text)}</p>" for text in self.recommendation]
        notes = [f"<p>{html.escape(text)}</p>" for text in self._notes()]
        tables = [html_table(self._form_lines()), *notes, html_table(self._file_lines())]
        return "".join([f"<p>{html.escape(self._title())}</p>", *texts, *tables])

    def to_markdown(self) -> str:
        """The same as a page."""
        forms, files = map(_markdown_table, (self._form_lines(), self._file_lines()))
        recommended = "\n".join(f"- {sentence}" for sentence in self.recommendation)
        return "\n\n".join(
            ["# Forms of a model, measured", self._title(), recommended, forms]
            + [*self._notes(), "## Files", files]
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers and text, for ``json.dump``."""
        forms = [
            asdict(row) | {"speed": {size: self.speed(row.name, size) for size in row.times}}
            for row in self.rows
        ]
        content = {
            "model": dict(self.model),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "sizes": list(self.sizes),
            "tolerance": self.tolerance,
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "forms": forms,
            "front": {cost: self.front(cost) for cost in ("time", "file")},
            "files": [asdict(file) for file in self.files],
            "recommendation": self.recommendation,
        }
        plain: dict[str, Any] = rounded(content)
        return plain

    # --- which one ------------------------------------------------------------------------------

    def _is_same(self, row: FormRow) -> bool:
        """Whether a form computes what its reference does, as far as its type tells."""
        tolerance = self.tolerance if row.tolerance is None else row.tolerance
        close = row.difference is not None and row.difference <= tolerance
        return close and not row.rounds_weights

    def _may_be_advised(self, row: FormRow) -> bool:
        """Whether a form is the model that was asked about."""
        return self._is_same(row) and row.compared_with != "unpruned"

    def _fastest(self, size: str, within_torch: bool = False) -> str:
        """The fastest form at a size; dense if no other one is clearly faster."""
        speeds = {
            row.name: self.speed(row.name, size) or 0.0
            for row in self.rows
            if self._may_be_advised(row)
            and self._gains(row, size)
            and not (within_torch and _is_elsewhere(row.name))
        }
        # Outputs that differ rule a form out however fast it is: it is another model.
        return max(speeds, key=lambda name: speeds[name], default="dense")

    def _rounded(self) -> list[str]:
        """Of int8 that it is another model, whose worth only a metric can tell."""
        rounded = [row for row in self.rows if row.rounds_weights and row.difference is not None]
        if not rounded:
            return []
        worst = max(rounded, key=lambda row: row.difference or 0.0)
        return [
            f"Forms with int8 are other models: outputs differ by up to {worst.difference:.2g} "
            f"({worst.name}). What that costs, only an evaluation function can tell."
        ]

    def _fronts(self) -> list[str]:
        """Which forms no other one beats in the metric and a cost."""
        sentences = []
        for cost, words in (("time", f"time at {self.sizes[-1]}"), ("file", "file")):
            names = [f"{name} ({self.row(name).metric:.4g})" for name in self.front(cost)]
            sentences.append(
                f"No form beats these in both {self.metric} and {words}: {', '.join(names)}."
            )
        return sentences

    def _gains(self, row: FormRow, size: str) -> bool:
        """Whether a form is faster than dense by its median and by its shortest time."""
        dense, times = self.row("dense").times.get(size), row.times.get(size)
        if dense is None or times is None:
            return False
        # Both must say so: a busy moment moves the one, a lucky call the other.
        ratios = (dense.median / times.median, dense.low / times.low)
        return min(ratios) >= WORTHWHILE

    def _undecided(self, size: str) -> str | None:
        """Why times at a size do not tell which form is faster; None if they do."""
        dense = self.row("dense").times.get(size)
        rivals = {
            row.name: row.times[size]
            for row in self.rows
            if row.name != "dense" and size in row.times and self._may_be_advised(row)
        }
        if dense is None or not rivals:
            return None
        # Whether one of the others is faster still would change no advice but the form's name.
        name, rival = min(rivals.items(), key=lambda item: item[1].median)
        spread, difference = max(dense.spread, rival.spread), abs(dense.median - rival.median)
        # A difference that would not be worthwhile need not be told from none.
        if spread <= max(difference, (WORTHWHILE - 1) * dense.median):
            return None
        return (
            f"at {size} the times of one form spread over {_ms(spread)} ms, and dense and {name} "
            f"differ by {_ms(difference)} ms"
        )

    def _use(self, winners: Mapping[str, str]) -> str:
        """One sentence for the fastest forms of all sizes."""
        if set(winners.values()) == {"dense"}:
            return f"Use dense: no other form is {WORTHWHILE} times as fast."
        if len(set(winners.values())) == 1:
            name = next(iter(winners.values()))
            speeds = [self.speed(name, size) or 0.0 for size in self.sizes]
            low, high = f"{min(speeds):.2f}", f"{max(speeds):.2f}"
            span = low if low == high else f"{low} to {high}"
            return f"Use {name}: {span} times as fast as dense ({_how(name)})."
        parts = []
        for name in dict.fromkeys(winners.values()):
            sizes = [size for size, winner in winners.items() if winner == name]
            gains = " and ".join(f"{self.speed(name, size):.2f}" for size in sizes)
            reason = "" if name == "dense" else f" ({gains} times as fast as dense)"
            parts.append(f"{name} at {' and '.join(sizes)}{reason}")
        return f"Use {'; '.join(parts)}."

    def _disturbed(self) -> list[str]:
        """That the machine was busy, if it was."""
        times = self.row("dense").times.values()
        # By dense alone: a form may have a slow first call of its own.
        worst = max((each.median / each.low for each in times), default=1.0)
        if worst < _BUSY:
            return []
        return [
            f"Measure again on a quieter machine: dense took {worst:.1f} times its shortest time "
            "in the median."
        ]

    # --- tables ---------------------------------------------------------------------------------

    def _title(self) -> str:
        model, machine = self.model, self.machine
        clock = f" of {machine['clock']}" if machine.get("clock") else ""
        threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        return (
            f"{model['class']}, {model['parameters']:,} parameters, {model['sparsity']:.1%} of the "
            f"selected weights are zero; {machine['device']}, {threads}; times "
            f"in ms{clock}, medians (shortest to longest) of forms that take turns; 2x is twice as "
            "fast as dense"
        )

    def _form_lines(self, with_times: bool = True) -> list[list[str]]:
        sizes = self.sizes if with_times else ()
        metric = [] if self.metric is None else [self.metric]
        lines = [["form", *metric, "file", "memory", "difference", *sizes]]
        for row in self.rows:
            if row.reason is not None:
                continue
            cells = ["-" if row.metric is None else f"{row.metric:.4g}"] if metric else []
            cells += [_megabytes(row.file_bytes), _megabytes(row.peak_bytes)]
            cells.append("-" if row.difference is None else f"{row.difference:.1e}")
            lines.append([row.name, *cells, *(self._cell(row.name, size) for size in sizes)])
        return lines

    def _cell(self, name: str, size: str) -> str:
        times = self.row(name).times.get(size)
        if times is None:
            return "-"
        speed = self.speed(name, size)
        span = f"{_ms(times.median)} ({_ms(times.low)} to {_ms(times.high)})"
        return span if name == "dense" else f"{span} {speed:.2f}x"

    def _time_lines(self) -> list[list[str]]:
        """A line for each form and size, where columns for all sizes would be too wide."""
        lines = [["form", "size", "ms", "shortest to longest", "times as fast"]]
        for row in self.rows:
            for size, times in row.times.items():
                speed = self.speed(row.name, size)
                ratio = "-" if speed is None else f"{speed:.2f}x"
                span = f"{_ms(times.low)} to {_ms(times.high)}"
                lines.append([row.name, size, _ms(times.median), span, ratio])
        return lines

    def _notes(self) -> list[str]:
        missing = [(row.name, row.reason) for row in self.rows if row.reason is not None]
        notes = [(row.name, row.note) for row in self.rows if row.note]
        return [
            "\n".join([title, *_joined(lines)])
            for title, lines in (("Not measured:", missing), ("Notes:", notes))
            if lines
        ]

    def _file_lines(self) -> list[list[str]]:
        lines = [["saved as", "size", "of dense", "pruned matrices alone"]]
        dense = self.files[0]
        for file in self.files:
            share = f"{file.num_bytes / dense.num_bytes:.3f}"
            matrices = (
                f"{file.matrix_bytes / dense.matrix_bytes:.3f}" if dense.matrix_bytes else "-"
            )
            lines.append([file.name, _megabytes(file.num_bytes), share, matrices])
        return lines


def _joined(lines: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each text, with the names of all forms of which it is said."""
    names: dict[str, list[str]] = {}
    for name, text in lines:
        names.setdefault(text, []).append(name)
    return [f"- {', '.join(of)}: {text}" for text, of in names.items()]


def _is_elsewhere(name: str) -> bool:
    return any(runtime in name for runtime in ELSEWHERE)


def _how(name: str) -> str:
    """What to do for a form."""
    weights, _, run = name.partition(" ")
    if weights == "shrunk" and run in HOW:
        return f"{HOW[weights]}; then {HOW[run]}"
    return HOW.get(name, name)


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _megabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:,.3g} MB"


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---" + "|---:" * (len(lines[0]) - 1) + "|", *rows])
