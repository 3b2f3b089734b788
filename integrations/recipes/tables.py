"""Local files of examples (TSV, CSV, JSON lines, Parquet), and the checks that need no model."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

FORMATS = ".tsv, .csv, .json, .jsonl or .parquet"


def read_table(flag: str, file: str) -> datasets.Dataset:
    """Read a file of examples; its ending says how.

    Args:
        flag: The flag that names the file, for errors.
        file: TSV without quoting (as GLUE's own), CSV, JSON lines, or Parquet; with column names.

    Returns:
        A data set; columns of TSV and CSV are text.

    Raises:
        ValueError: If it is missing, empty, of another kind, or broken.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{flag} must be a file, got {file!r}, which does not exist: check it")
    readers = {
        ".tsv": _read_tsv,
        ".csv": _read_csv,
        ".json": _read_json,
        ".jsonl": _read_json,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"{flag} must end with {FORMATS}, got {path.name!r}: rename or convert it")
    try:
        columns = readers[path.suffix.lower()](path)
    except (UnicodeDecodeError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{flag} must be a readable {path.suffix} file, got {file!r}: {error}"
        ) from error
    if not columns or not next(iter(columns.values())):
        raise ValueError(f"{flag} must have column names and at least one row, got {file!r}")
    return datasets.Dataset.from_dict(columns)


def _read_tsv(path: Path) -> dict[str, list[Any]]:
    return _read_lines(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_csv(path: Path) -> dict[str, list[Any]]:
    return _read_lines(path)


def _read_lines(path: Path, **dialect: Any) -> dict[str, list[Any]]:
    # A field may be longer than the csv module's limit of 128 KiB.
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, **dialect)
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise ValueError(f"its columns must have different names, got {names}")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(
                    f"line {rows.line_num} must have {len(names)} fields, got {len(row)}"
                )
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
    return columns


def _read_json(path: Path) -> dict[str, list[Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} must be JSON on its own: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} must be an object {{...}}, got {line.strip()}")
                rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


def name_columns(
    flag: str, table: datasets.Dataset, columns: Sequence[str], labelled: bool
) -> datasets.Dataset:
    """Keep the text columns, under the task's own names, and the label.

    ``sentence`` and ``sentence1, sentence2`` stand for the task's own columns.

    Raises:
        ValueError: If a column is missing or holds something else than text.
    """
    general = ("sentence",) if len(columns) == 1 else ("sentence1", "sentence2")
    found = next((n for n in (tuple(columns), general) if set(n) <= set(table.column_names)), None)
    if found is None or (labelled and "label" not in table.column_names):
        wanted = " or ".join(dict.fromkeys((", ".join(columns), ", ".join(general))))
        raise ValueError(
            f"{flag} must have the columns {wanted}{', and label' if labelled else ''}, got "
            f"{', '.join(table.column_names)}: rename them"
        )
    for name in found:
        for row, value in enumerate(table[name], start=1):
            if not isinstance(value, str):
                raise ValueError(
                    f"{flag}: {name} must be text, got {value!r} in row {row}: remove or correct it"
                )
    kept = [*found, *(["label"] if "label" in table.column_names else [])]
    table = table.select_columns(kept)
    renamed = {old: new for old, new in zip(found, columns, strict=True) if old != new}
    return table.rename_columns(renamed)


def class_numbers(flag: str, values: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """Labels as numbers of classes.

    Args:
        flag: For errors.
        values: Numbers from 0, also as text, or names of classes.
        classes: Their names, by number.

    Raises:
        ValueError: If a label is neither; names the first such row.
    """
    numbers = {name.lower(): number for number, name in enumerate(classes)}
    numbers |= {str(number): number for number in range(len(classes))}
    found = []
    for row, value in enumerate(values, start=1):
        is_whole = isinstance(value, float) and value.is_integer()
        text = str(int(value)) if is_whole else str(value)
        number = numbers.get(text.strip().lower())
        if number is None:
            hint = "; -1 marks an example without a label" if text == "-1" else ""
            raise ValueError(
                f"{flag}: label must be one of 0 to {len(classes) - 1} or "
                f"{', '.join(classes)}, got {value!r} in row {row}{hint}"
            )
        found.append(number)
    return found


def numbers_in(flag: str, values: Sequence[Any], low: float, high: float) -> list[float]:
    """Labels as numbers in a range.

    Raises:
        ValueError: If a label is no number, or out of range; names the first such row.
    """
    found = []
    for row, value in enumerate(values, start=1):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(
                f"{flag}: label must be a number from {low:g} to {high:g}, got {value!r} in row "
                f"{row}"
            )
        found.append(number)
    return found
