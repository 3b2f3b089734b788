"""One reader of files for all recipes: what it reads, and how it names what it can't read."""

import json

import pytest

from platon_prune.integrations.recipes.files import read_text
from platon_prune.integrations.recipes.parsing import _read_settings
from platon_prune.integrations.recipes.squad.data import read_squad
from platon_prune.integrations.recipes.tables import class_numbers, name_columns, read_table

FLAG = "--train_file"
BOM = b"\xef\xbb\xbf"
CLASSES = ("negative", "positive")
CONTENTS = {
    "csv": "sentence,label\na film,1\n",
    "tsv": "sentence\tlabel\na film\t1\n",
    "jsonl": '{"sentence": "a film", "label": "1"}\n',
    "json": '[{"sentence": "a film", "label": "1"}]',
}


def columns_of(path, *names):
    table = read_table(FLAG, str(path))
    return [table[name] for name in names]


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("ending", CONTENTS)
def test_utf8_is_read_with_and_without_a_byte_order_mark(tmp_path, ending, mark):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(mark + CONTENTS[ending].encode())
    assert columns_of(path, "sentence", "label") == [["a film"], ["1"]]


def test_settings_and_questions_are_read_with_a_byte_order_mark_too(tmp_path):
    settings, squad = tmp_path / "settings.json", tmp_path / "squad.json"
    settings.write_bytes(BOM + b'{"seed": 1}')
    entry = {"context": "c", "question": "q", "id": "i"}
    squad.write_bytes(BOM + json.dumps({"data": [entry]}).encode())
    assert _read_settings(settings) == {"seed": 1}
    assert read_squad(str(squad))["id"] == ["i"]


@pytest.mark.parametrize("ending", CONTENTS)
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("cp1252", r"can't read byte 0xe9 in line \d.* iconv -f CP1252 -t UTF-8"),
        ("utf-16", "no UTF-8 text but UTF-16: .* iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_another_encoding_is_named_with_the_remedy(tmp_path, ending, encoding, message):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(CONTENTS[ending].replace("film", "café").encode(encoding))
    with pytest.raises(ValueError, match=f"rows.{ending}.*{message}"):
        read_table(FLAG, str(path))


def test_the_line_of_another_encoding_is_found_however_far_down(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"sentence,label\n" + b"a film,1\n" * 5000 + "café,1\n".encode("cp1252"))
    with pytest.raises(ValueError, match="byte 0xe9 in line 5002"):
        read_text(path)


@pytest.mark.case
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_column_that_is_not_used_may_hold_anything(tmp_path, ending):
    metas = [1, {"x": [1]}, None, "text"]
    rows = [{"sentence": "a", "label": n % 2, "meta": meta} for n, meta in enumerate(metas)]
    path = tmp_path / f"rows.{ending}"
    text = json.dumps(rows, indent=1) if ending == "json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    table = name_columns(FLAG, read_table(FLAG, str(path)), ("sentence",), True)
    assert table.to_dict() == {"sentence": ["a"] * 4, "label": [0, 1, 0, 1]}


def test_labels_of_mixed_types_are_read_as_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sentence": "a", "label": 1}\n{"sentence": "b", "label": "negative"}\n')
    table = name_columns(FLAG, read_table(FLAG, str(path)), ("sentence",), True)
    assert class_numbers(FLAG, table["label"], CLASSES) == [1, 0]


@pytest.mark.case
def test_whole_labels_that_pandas_wrote_as_floats_are_read_alike_from_text_and_numbers():
    assert class_numbers(FLAG, ["1.0", "0.0"], CLASSES) == [1, 0]
    assert class_numbers(FLAG, [1.0, 0.0], CLASSES) == [1, 0]
    with pytest.raises(ValueError, match="got '0.5' in row 1"):
        class_numbers(FLAG, ["0.5"], CLASSES)


def test_semicolons_may_separate_the_columns_of_a_csv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sentence;label\nfine, good;1\n")
    assert columns_of(path, "sentence", "label") == [["fine, good"], ["1"]]


def test_columns_without_a_name_are_no_obstacle(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",,sentence,label\n0,0,a film,1\n")
    assert columns_of(path, "sentence", "label") == [["a film"], ["1"]]


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", json.dumps([{"sentence": LONG}, LONG]), "whose item 2 is none"),
        ("rows.json", f'[{{"sentence": "{LONG}", }}]', "readable .json file, got .*line 1"),
        ("rows.jsonl", f'"{LONG}"', "line 1 must be an object"),
        ("rows.jsonl", f'{{"sentence": "a"}}\n{{"{LONG}', "line 2 must be JSON on its own"),
        ("rows.json", '{\n "data": []\n}', "write one object per line or one array"),
        ("rows.json", "[" * 100_000, "nested too deeply"),
        ("rows.csv", f'sentence,label\n"{LONG},1\na,1\n', "line 2 must have 2 fields, got 1"),
        ("rows.csv", ",".join([LONG] * 2) + "\n1,2\n", "must have different names, got .*x"),
        ("rows.csv", f"{LONG},{LONG[1:]}\n1,2\n", "must have the columns sentence, and label"),
        (f"{'a' * 200}.csv", "", "must have column names and at least one row"),
        ("rows.jsonl", json.dumps({"sentence": [LONG], "label": 1}), "must be text, .* in row 1"),
        ("rows.jsonl", '{"sentence": "\\ud800", "label": 1}', "no Unicode"),
        ("rows.jsonl", json.dumps({"sentence": "a", "label": LONG}), "label must be .* in row 1"),
        ("rows.parquet", "no parquet", "must be a readable .parquet file"),
    ],
)  # fmt: skip
def test_an_error_is_short_and_names_the_file_or_the_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        table = name_columns(FLAG, read_table(FLAG, str(path)), ("sentence",), True)
        class_numbers(FLAG, table["label"], CLASSES)
    assert str(caught.value).startswith(FLAG) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_folder_where_a_file_should_be_is_named_as_one(tmp_path):
    with pytest.raises(ValueError, match="--train_file must be a file, got the folder .*: name a"):
        read_table(FLAG, str(tmp_path))
    with pytest.raises(ValueError, match="must be a SQuAD JSON file, got .*that is a folder"):
        read_squad(str(tmp_path), FLAG)


def test_columns_of_parquet_are_read_one_by_one(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = {"sentence": ["a"], "label": [1.0], "meta": [{"x": [1]}]}
    pq.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    table = read_table(FLAG, str(tmp_path / "rows.parquet"))
    assert table.column_names == ["sentence", "label", "meta"]
    assert (table["label"], table["meta"]) == ([1.0], [{"x": [1]}])
