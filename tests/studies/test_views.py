"""A report chooses, averages and compares over seeds as arithmetic says."""

import json
import math

import pytest
import study_job

pytest.importorskip("matplotlib")

from platon_prune import cli  # noqa: E402
from platon_prune.commands.study import asked as study  # noqa: E402
from platon_prune.studies.cells import Cell, Grid, Option, Recipe  # noqa: E402
from platon_prune.studies.intervals import interval_of_mean, t_quantile  # noqa: E402
from platon_prune.studies.table import Row  # noqa: E402
from platon_prune.studies.views import View  # noqa: E402

RECIPE = Recipe(
    "made up",
    lambda cell, place: {},
    options={"rate": Option(0.1), "threads": Option(1), "kind": Option("a")},
    shared_options=("rate", "threads"),
    rivals={"theirs": ()},
)


def row(criterion="platon", amount=0.9, values=(), chosen_by=(), **options):
    by_seed = {seed: {"accuracy": value} for seed, value in enumerate(values)}
    for seed, value in enumerate(chosen_by):
        by_seed[seed]["validation"] = value
    return Row(criterion, amount, options, len(values), by_seed)


# From printed tables of Student's distribution, two-sided 5 %.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045), (100, 1.984)],
)
def test_the_quantile_is_that_of_students_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_an_interval_is_the_mean_and_t_standard_errors_on_either_side():
    low, high = interval_of_mean([1.0, 2.0, 3.0, 4.0])
    reach = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == (pytest.approx(2.5 - reach), pytest.approx(2.5 + reach))
    assert interval_of_mean([7.0]) is None
    assert interval_of_mean([7.0, 7.0]) == (7.0, 7.0)


def test_the_best_of_an_option_is_chosen_by_its_mean_on_validation_for_each_row_of_its_own():
    recipe = study_job.with_options(RECIPE, chosen_by="validation")
    rows = [
        row("platon", values=[99, 99], chosen_by=[50, 60]),
        row("platon", values=[80, 90], chosen_by=[70, 60], rate=0.2),
        row("magnitude", values=[70, 70], chosen_by=[70, 70]),
        row("magnitude", values=[90, 90], chosen_by=[10, 10], rate=0.2),
    ]
    shown = View(best_of="rate").rows(recipe, rows)
    assert [(r.criterion, r.values("accuracy")) for r in shown] == [
        ("platon", [80, 90]),
        ("magnitude", [70, 70]),
    ]
    assert [r.chosen for r in shown] == [{"rate": 0.2}, {"rate": 0.1}]
    assert [(r.options, r.num_tried) for r in shown] == [({}, 2), ({}, 2)]


def test_the_best_is_the_lowest_where_low_values_are_good():
    recipe = study_job.with_options(RECIPE, lower_is_better=True)
    rows = [row(values=[5.0, 7.0]), row(values=[6.5, 5.0], rate=0.2)]
    (best,) = View(best_of="rate").rows(recipe, rows)
    assert best.chosen == {"rate": 0.2}


def test_of_unfinished_rows_the_best_is_of_those_that_are_there():
    rows = [row(values=[]), row(values=[5.0], rate=0.2)]
    (best,) = View(best_of="rate").rows(RECIPE, rows)
    assert (best.chosen, best.num_tried) == ({"rate": 0.2}, 1)
    (none,) = View(best_of="rate").rows(RECIPE, [row(), row(rate=0.2)])
    assert (none.chosen, none.num_tried, none.by_seed) == ({}, 0, {})


def test_the_best_is_chosen_over_the_seeds_that_all_values_have():
    """A value whose only seed is a good one must not win by that."""
    ahead = row(values=[60, 70, 90])
    lucky = Row("platon", 0.9, {"rate": 0.2}, 3, {2: {"accuracy": 85.0}})
    (best,) = View(best_of="rate").rows(RECIPE, [ahead, lucky])
    assert (best.chosen, best.num_tried) == ({"rate": 0.1}, 2)
    # Without a seed in common the one with the fewest can't be compared.
    apart = Row("platon", 0.9, {"rate": 0.3}, 3, {7: {"accuracy": 99.0}})
    (best,) = View(best_of="rate").rows(RECIPE, [apart, ahead])
    assert (best.chosen, best.num_tried) == ({"rate": 0.1}, 1)


def test_who_does_not_know_an_option_has_no_best_value_of_it():
    rows = [row("theirs", values=[1]), row(values=[1]), row(values=[2], kind="b")]
    theirs, ours = View(best_of="kind").rows(RECIPE, rows)
    assert (theirs.chosen, theirs.num_tried, ours.chosen) == ({}, 0, {"kind": "b"})


@pytest.mark.parametrize(
    ("option", "best", "shown"),
    [
        (["kind=a,b"], {"kind": "b"}, "b (of 2)"),
        (["flag=true,false"], {"flag": True}, "true (of 2)"),
        # Without the option there is no limit, which has no number.
        (["limit=0.5,0.25", "--one-by-one"], {}, "default (of 3)"),
    ],
)
def test_the_best_value_may_be_a_text_a_boolean_or_none(
    tmp_path, monkeypatch, capsys, option, best, shown
):
    recipe = study_job.with_options(
        study_job.fake(lambda cell, _: {"accuracy": 90.0 if cell.options == best else 80.0}),
        options={"kind": Option("a"), "flag": Option(False), "limit": Option(None, kind=float)},
    )
    monkeypatch.setitem(study.RECIPES, "fake", recipe)
    flags = ["--recipe", "fake", "--criteria", "platon", "--amounts", "0.5", "--seeds", "0"]
    flags += ["--option", *option, "--best-of", option[0].partition("=")[0]]
    assert cli.main(["study", *flags, "--output-dir", str(tmp_path)]) == 0
    assert f"| platon | {shown} | 90.0 |" in capsys.readouterr().out


def test_the_mean_over_an_option_is_taken_within_each_seed_that_has_all_its_values():
    rows = [row(values=[90, 80, 70]), row(values=[92, 84], threads=2), row(values=[1], kind="b")]
    shown = View(mean_over="threads").rows(RECIPE, rows)
    assert [r.values("accuracy") for r in shown] == [[91, 82], [1]]
    assert [r.options for r in shown] == [{}, {"kind": "b"}]


def test_every_row_is_compared_with_one_criterion_of_the_same_options_and_amount():
    rows = [
        row("magnitude"),
        row("magnitude", kind="b"),
        row("platon"),
        row("platon", kind="b"),
        row("platon", kind="c"),
        row("platon", amount=0.5),
        row("dense", amount=0.9),
    ]
    view = View(against="magnitude")
    found = [view.reference_of(each, rows) for each in rows]
    assert found == [None, None, rows[0], rows[1], None, None, None]


def test_rows_with_options_are_compared_with_a_rival_that_knows_none():
    rows = [row("theirs"), row("platon"), row("platon", kind="b")]
    found = [View(against="theirs").reference_of(each, rows) for each in rows]
    assert found == [None, rows[0], rows[0]]


def test_a_mean_is_rounded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(study.RECIPES, "fake", study_job.fake(lambda *_: {"accuracy": 84.748}))
    flags = ["--recipe", "fake", "--criteria", "platon", "--amounts", "0.5", "--seeds", "0"]
    assert cli.main(["study", *flags, "--output-dir", str(tmp_path)]) == 0
    assert "| platon | 84.7 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(best_of="kind"), "--best_of must be an option with several values, one of rate"),
        (View(mean_over="depth"), "--mean_over must be an option with several values"),
        (View(against="movement"), "--against must be one of the criteria, platon"),
        (View(best_of="rate", mean_over="rate"), "must differ"),
    ],
)
def test_a_view_that_the_cells_do_not_have_is_refused(view, message):
    cells = Grid(("dense", "platon"), (0.9,), (0,), {"rate": (0.1, 0.2)}).cells(RECIPE, {})
    with pytest.raises(ValueError, match=message):
        view.check(RECIPE, cells)


def test_options_of_training_hold_for_dense_models_and_rivals_too():
    options = {"rate": (0.1, 0.2), "kind": ("a", "b")}
    cells = Grid(("dense", "theirs", "platon"), (0.5,), (0,), options).cells(RECIPE, {})
    found = [(c.criterion, c.options) for c in cells]
    assert found[:4] == [
        ("dense", {}),
        ("dense", {"rate": 0.2}),
        ("theirs", {}),
        ("theirs", {"rate": 0.2}),
    ]
    assert len(found) == 4 + 4


def test_a_criterion_at_its_own_best_is_what_the_report_shows(tmp_path, monkeypatch, capsys):
    def run(cell: Cell, place):
        width = cell.options.get("width", 1)
        return {"accuracy": study_job.score(cell) + (width if cell.criterion == "platon" else 0)}

    monkeypatch.setitem(study.RECIPES, "fake", study_job.fake(run))
    flags = ["--recipe", "fake", "--criteria", "magnitude", "platon", "--amounts", "0.5"]
    flags += ["--option", "width=1,2", "--output-dir", str(tmp_path)]
    assert cli.main(["study", *flags, "--best-of", "width", "--against", "magnitude"]) == 0
    page = capsys.readouterr().out
    content = json.loads((tmp_path / "study.json").read_text())
    ours = next(r for r in content["rows"] if r["criterion"] == "platon")
    # By arithmetic: 100 - 10 * 0.5 + 2 + seed, and 100 - 20 * 0.5 + seed.
    assert ours["chosen"] == {"width": 2}
    assert ours["metrics"]["accuracy"]["mean"] == pytest.approx(98)
    assert ours["differences"] == {"0": 7.0, "1": 7.0, "2": 7.0}
    assert ours["interval"] == [7.0, 7.0]
    assert "| platon | 2 (of 2) | 98.0 ± 1.0 (97.0 to 99.0) |" in page
    assert "+7.0 to +7.0" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "against.png"}
