"""The metric of a form: any form is called as the model is, and the front is drawn."""

import json
import math
from dataclasses import replace

import pytest
import tiny_transformers
import torch
from tiny import sample
from torch import nn

import platon_prune
from platon_prune.deploy import evaluation, rounded_forms
from platon_prune.deploy.evaluation import CallableForm, graph_inputs
from platon_prune.deploy.form import Form
from platon_prune.deploy.forms import WEIGHTS
from platon_prune.deploy.front import pareto_front
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FileSize, FormRow, Times
from platon_prune.integrations.goal_settings import is_greater_better


def two_layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def quick(model, wanted=("masked",), **settings):
    settings = {"rounds": 1, "memory": False, "forms": list(wanted)} | settings
    return platon_prune.deploy_report(model, sample(2, 6), **settings)


# --- the metric of each form ----------------------------------------------------------------------


def test_the_metric_of_each_form_is_the_one_computed_from_its_outputs(monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.setattr(rounded_forms, "has_bfloat16", lambda: True)
    model, unpruned = (two_layers(seed).requires_grad_(False) for seed in (0, 1))
    # More rows than the example has, and another number at a time.
    inputs, labels = sample(40, 6), sample(40, 3, seed=1).argmax(1)

    def loss(form):
        batches = [form(each) for each in inputs.split(7)]
        assert all(batch.dtype == torch.float32 for batch in batches)
        return float(nn.functional.cross_entropy(torch.cat(batches), labels))

    wanted = ["bfloat16", "ONNX Runtime", "OpenVINO", "unpruned"]
    report = quick(model, wanted, unpruned=unpruned, evaluate=loss)
    expected = float(nn.functional.cross_entropy(model(inputs), labels))
    for name, tolerance in (
        ("dense", 0),
        ("bfloat16", 1e-2),
        ("ONNX Runtime", 1e-5),
        ("OpenVINO", 1e-5),
    ):
        assert report.row(name).metric == pytest.approx(expected, abs=tolerance), name
    halved = two_layers().bfloat16()(inputs.bfloat16()).float()
    assert report.row("bfloat16").metric == float(nn.functional.cross_entropy(halved, labels))
    other = float(nn.functional.cross_entropy(unpruned(inputs), labels))
    assert report.row("unpruned").metric == other != expected
    assert (report.metric, report.greater_is_better) == ("loss", False)


def test_a_form_is_called_as_the_model_and_gives_the_models_own_kind_of_output():
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = tiny_transformers.bert().eval()
    tokens = torch.randint(1, 16, (3, 5), generator=torch.Generator().manual_seed(0))
    seen = {}

    def evaluate(form):
        assert isinstance(form, nn.Module) and not form.training and not torch.is_grad_enabled()
        assert form.config is model.config and form.device == torch.device("cpu")
        out = form(tokens, attention_mask=torch.ones_like(tokens), return_dict=True)
        assert type(out) is type(model(tokens)) and not out.logits.is_inference()
        seen[len(seen)] = out.logits
        return out.logits.sum()  # a tensor of one number will do

    report = platon_prune.deploy_report(
        model, num_tokens=(4, 6), forms=["ONNX Runtime"], rounds=1, memory=False, evaluate=evaluate
    )
    expected = model(tokens).logits.detach()
    assert len(seen) == 2
    for outputs in seen.values():
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(row.metric, float) for row in report)


def test_a_model_of_several_arguments_is_called_with_any_mixture_of_them():
    class Two(nn.Module):
        def forward(self, first, second=None):
            return {"sum": first + second}

    model = Two()
    call = CallableForm(of_call(model), model, (torch.ones(1), torch.ones(1)))
    assert float(call(torch.tensor([1.0]), second=torch.tensor([2.0]))["sum"]) == 3
    assert float(call(first=torch.tensor([1.0]), second=torch.tensor([4.0]))["sum"]) == 5
    assert float(call(torch.tensor([1.0]), torch.tensor([6.0]))["sum"]) == 7


def of_call(model):
    from platon_prune.deploy.form import call_of

    return Form(call_of(model), "torch", model=model)


def test_what_a_file_has_no_input_for_is_left_out_only_where_it_changes_nothing():
    class Encoder(nn.Module):
        def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
            raise AssertionError

    names, tokens = ("input_ids", "attention_mask"), torch.ones(2, 3, dtype=torch.int64)
    found = graph_inputs((tokens,), {"token_type_ids": torch.zeros(2, 3)}, names, Encoder())
    assert list(found) == list(names)
    assert torch.equal(found["attention_mask"], torch.ones(2, 3, dtype=torch.int64))
    assert list(graph_inputs((), {"input_ids": tokens, "labels": None}, names, Encoder())) == [
        *names
    ]
    for left in ({"token_type_ids": torch.ones(2, 3)}, {"labels": torch.zeros(2)}):
        with pytest.raises(ValueError, match=f"nothing else, got {next(iter(left))}"):
            graph_inputs((tokens,), left, names, Encoder())
    with pytest.raises(ValueError, match="got no input_ids"):
        graph_inputs((), {"attention_mask": tokens}, names, Encoder())


def test_a_file_that_does_not_take_a_size_says_which_and_what_to_do():
    def prepare(inputs):
        raise RuntimeError("Exception from src/some/file.cpp:75:")

    model = two_layers()
    form = CallableForm(Form(prepare, "onnx", names=("input",)), model, sample(2, 6))
    with pytest.raises(ValueError, match=r"inputs of the shapes \[\(7, 6\)\]: pass example inputs"):
        form(sample(7, 6))


def test_a_form_that_can_not_be_evaluated_says_why_and_the_others_go_on():
    def odd(form):
        if form._kept["form"].kind != "torch":
            raise RuntimeError("too long for it\nand more")
        return 0.5

    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    report = quick(two_layers(), ["ONNX Runtime"], evaluate=odd)
    row = report.row("ONNX Runtime")
    assert row.metric is None and row.times and row.note == "odd not measured: too long for it"
    assert report.row("dense").metric == 0.5 and report.front("time") == ["dense"]
    line = next(line for line in str(report).splitlines() if line.startswith("ONNX Runtime"))
    assert line.split()[2] == "-"


def test_an_error_of_the_function_itself_ends_everything_before_another_form_is_built(monkeypatch):
    said = []
    with pytest.raises(KeyError, match="typo"):
        quick(two_layers(), evaluate=lambda form: {}["typo"], progress=said.append)
    assert said == ["building dense", "evaluating dense"]


@pytest.mark.parametrize("value", [None, True, "0.5", math.nan, math.inf, torch.ones(2), [1.0]])
def test_a_metric_is_one_finite_number(value):
    with pytest.raises(ValueError, match="evaluate must return a finite number, got"):
        quick(two_layers(), evaluate=lambda form: value)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"evaluate": 0.5}, TypeError, "evaluate must be a function"),
        ({"metric": "f1"}, ValueError, "evaluate must be given for metric='f1'"),
        ({"greater_is_better": False}, ValueError, "evaluate must be given for greater_is_better"),
        ({"evaluate": len, "metric": 1}, TypeError, "metric must be a str, got 1"),
        ({"evaluate": len, "greater_is_better": "no"}, TypeError, "must be a bool, got 'no'"),
    ],
    ids=["no function", "name alone", "direction alone", "name", "direction"],
)
def test_what_is_no_evaluation_is_refused_before_any_work(monkeypatch, settings, error, said):
    monkeypatch.setattr(platon_prune.deploy.measure, "make_examples", pytest.fail)
    with pytest.raises(error, match=said):
        quick(two_layers(), **settings)


def test_the_name_of_a_metric_is_the_functions_unless_it_is_given_and_tells_the_direction():
    def perplexity(form):
        return 3.0

    assert quick(two_layers(), evaluate=perplexity).greater_is_better is False
    report = quick(two_layers(), evaluate=lambda form: 1.0, metric="f1")
    assert (report.metric, report.greater_is_better) == ("f1", True)
    assert quick(two_layers(), evaluate=lambda form: 1.0).metric == "metric"
    told = quick(two_layers(), evaluate=perplexity, greater_is_better=True)
    assert told.greater_is_better is True


@pytest.mark.parametrize("name", ["accuracy", "eval_loss", "loss", "perplexity", "losses"])
def test_the_direction_by_a_name_is_that_of_the_trainers(name):
    assert evaluation.is_greater_better(name) == is_greater_better(name)


# --- the front ----------------------------------------------------------------------------------


def test_the_front_has_what_no_other_point_beats_in_both():
    #          dominated by the first, on it, worse and dearer, dearest and best
    costs = [1.0, 1.0, 2.0, 3.0, 4.0]
    values = [0.6, 0.5, 0.8, 0.7, 0.9]
    assert pareto_front(costs, values) == [0, 2, 4]
    # Where less is better the cheapest of the least is left alone.
    assert pareto_front(costs, values, greater_is_better=False) == [1]
    assert pareto_front(costs, [-v for v in values], greater_is_better=False) == [0, 2, 4]


def test_points_that_are_equal_in_both_are_both_on_the_front_and_ties_in_one_are_not():
    assert pareto_front([1, 1, 2], [5, 5, 5]) == [0, 1]
    assert pareto_front([3, 2, 2], [7, 6, 7]) == [2]
    assert pareto_front([], []) == []


def test_no_point_of_the_front_is_dominated_and_every_other_one_is():
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(0, 12, (60,), generator=generator).tolist()
    values = torch.randint(0, 12, (60,), generator=generator).tolist()
    front = pareto_front(costs, values)

    def is_beaten(i):
        return any(
            costs[j] <= costs[i] and values[j] >= values[i]
            and (costs[j], values[j]) != (costs[i], values[i])
            for j in range(60)
        )  # fmt: skip

    assert sorted(front) == [i for i in range(60) if not is_beaten(i)]
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def row(name, median, size, metric, **more):
    times = {"8": Times(median, median, median), "32": Times(median + 1, median, median + 2)}
    return FormRow(name, None, size, 80, times, 1000, 0.0, metric=metric, **more)


def made_up(**settings):
    rows = (
        row("dense", 10.0, 100, 0.9),
        row("int8", 4.0, 40, 0.88, rounds_weights=True),
        row("shrunk int8", 3.0, 50, 0.8, compared_with="shrunk", rounds_weights=True),
        row("OpenVINO", 12.0, 100, 0.9),
        row("ONNX Runtime", 5.0, 90, None),
        row("unpruned", 10.0, 110, 0.95, compared_with="unpruned"),
        FormRow("masked", "no masks"),
    )
    facts = {"class": "Net", "parameters": 10, "sparsity": 0.9}
    machine = {"device": "CPU", "threads": 1}
    settings = {"metric": "accuracy"} | settings
    files = (FileSize("dense", 100, 80),)
    return DeployReport(rows, files, ("8", "32"), 1e-3, facts, machine, {}, **settings)


def test_a_report_tells_both_fronts_in_words_and_in_json():
    report = made_up()
    # By time at the larger size; dense takes as long as unpruned, which is better.
    assert report.front("time") == ["shrunk int8", "int8", "unpruned"]
    # By file OpenVINO is equal to dense in both.
    assert report.front("file") == ["int8", "dense", "OpenVINO", "unpruned"]
    said = "No form beats these in both accuracy and time at 32: shrunk int8 (0.8), int8 (0.88), "
    assert said + "unpruned (0.95)." in report.recommendation
    content = json.loads(json.dumps(report.to_json()))
    assert content["front"] == {"time": report.front("time"), "file": report.front("file")}
    assert (content["metric"], content["greater_is_better"]) == ("accuracy", True)
    assert [form["metric"] for form in content["forms"]] == [0.9, 0.88, 0.8, 0.9, None, 0.95, None]
    assert content["forms"][2]["compared_with"] == "shrunk"
    assert "| form | accuracy | file |" in report.to_markdown()
    # Neither rounded nor unpruned, the fastest is this one.
    assert report.recommendation[0].startswith("Use ONNX Runtime")
    assert set(WEIGHTS) == {"shrunk", "unpruned"}


def test_a_report_without_a_metric_has_no_front_and_no_column_for_it():
    report = made_up(metric=None)
    assert "accuracy" not in str(report)
    assert not any("No form beats" in line for line in report.recommendation)
    assert any(
        line.startswith("Forms with int8 are other models") for line in report.recommendation
    )


def test_names_of_forms_are_whole_in_a_table_of_many_sizes():
    names = ("dense", "unpruned ONNX Runtime int8", "unpruned OpenVINO int8")
    sizes = tuple(f"{n} tokens" for n in (8, 32, 128))
    rows = [
        FormRow(n, None, 10**8, 80, dict.fromkeys(sizes, Times(100.5, 99.5, 1234.5)), 10**8, 0.1,
                metric=87.61)
        for n in names
    ]  # fmt: skip
    facts = {"class": "Net", "parameters": 10, "sparsity": 0.9}
    files = (FileSize("dense", 100, 80),)
    shown = str(
        DeployReport(
            tuple(rows), files, sizes, 1.0, facts, {"device": "CPU", "threads": 1}, {}, "accuracy"
        )
    )
    assert all(name in shown for name in names)
    assert max(map(len, shown.split("\n\n")[1].splitlines())) <= 100


# --- the picture --------------------------------------------------------------------------------


def test_the_picture_joins_the_front_by_steps_and_names_it_without_covering_a_name(
    tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from platon_prune.deploy.metric_picture import save_metric_picture

    kept = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file, **how: kept.append(figure) or file.write(b"x")
    )
    save_metric_picture(made_up(), tmp_path / "picture.png")
    (figure,) = kept
    time, file = figure.axes
    (line,) = (each for each in time.lines if each.get_drawstyle() == "steps-post")
    # Medians at the larger size are one more than at the smaller.
    assert list(line.get_xdata()) == [4.0, 5.0, 11.0] and list(line.get_ydata()) == [
        0.8,
        0.88,
        0.95,
    ]
    assert {text.get_text() for text in time.texts} == {"shrunk int8", "int8", "unpruned"}
    assert {t.get_text() for t in file.texts} == {"int8", "dense", "OpenVINO", "unpruned"}
    # A point for each form with a metric, beside the front's line.
    assert len(time.lines) == len(file.lines) == 5 + 1
    renderer = figure.canvas.get_renderer()
    for axes in (time, file):
        boxes = []
        for text in axes.texts:
            text.update_positions(renderer)
            boxes.append(Text.get_window_extent(text, renderer))
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_picture_of_a_metric_needs_one(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    from platon_prune.deploy.metric_picture import save_metric_picture

    with pytest.raises(ValueError, match="must have a metric"):
        save_metric_picture(made_up(metric=None), tmp_path / "picture.png")


@pytest.mark.parametrize("metrics", [(0.5,), (0.5, 0.5, 0.5)])
def test_a_picture_can_show_points_that_are_all_alike(tmp_path, metrics):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    from platon_prune.deploy.metric_picture import save_metric_picture

    rows = tuple(row(f"{'shrunk ' * i}int8", 1.0, 10, m) for i, m in enumerate(metrics))
    # One form alone runs the smaller size only.
    rows = tuple(replace(r, times={"8": r.times["8"]}) for r in rows) if len(rows) == 1 else rows
    facts, machine = {"class": "N", "sparsity": 0.0}, {"device": "CPU", "threads": 2}
    report = DeployReport(rows, (), ("8", "32"), 1.0, facts, machine, {}, "accuracy")
    save_metric_picture(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
