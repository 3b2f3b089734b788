"""`compat.Pruner` replays recorded runs of the reference implementation, step by step.

A trace holds ``initial/NAME``, ``grad/NAME`` and ``after/NAME`` (over the steps), the averages
after the last step, and as JSON the settings and a log of (step, density, score threshold).
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from platon_prune import compat

TRACES = sorted((Path(__file__).parent / "reference_traces").glob("*.safetensors"))
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


class Trace:
    """One recorded run, and a model, optimizer and pruner to replay it with."""

    def __init__(self, path, device):
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["trace"])
            tensors = {key: file.get_tensor(key).to(device) for key in file.keys()}  # noqa: SIM118
        self.log, self.selected = settings["log"], settings["selected"]
        self.tensors = tensors
        self.model = nn.Module()
        for name in sorted(self.names("initial")):
            _register(self.model, name, nn.Parameter(tensors[f"initial/{name}"]))
        self.optimizer = OPTIMIZERS[settings["optimizer"]](
            self.model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"]
        )
        self.pruner = compat.Pruner(
            self.model,
            SimpleNamespace(**settings["args"]),
            settings["total_step"],
            mask_param_name=settings["mask_param_name"],
            non_mask_name=settings["non_mask_name"],
            use_no_mask=settings["use_no_mask"],
            pruner_name=settings["pruner_name"],
        )

    def names(self, kind):
        return [key.split("/", 1)[1] for key in self.tensors if key.startswith(f"{kind}/")]

    def steps(self):
        """Replay; yields (step, recorded density and threshold, returned ones)."""
        for step, density, threshold in self.log:
            for name, parameter in self.model.named_parameters():
                parameter.grad = self.tensors[f"grad/{name}"][step - 1].clone()
            self.optimizer.step()
            yield step, (density, threshold), self.pruner.update_and_pruning(self.model, step)


def _register(model, name, parameter):
    *path, last = name.split(".")
    for part in path:
        if part not in model._modules:
            model.add_module(part, nn.Module())
        model = model._modules[part]
    model.register_parameter(last, parameter)


@pytest.fixture(params=TRACES, ids=lambda path: path.stem)
def trace(request, device):
    return Trace(request.param, device)


def test_there_are_traces_of_every_setting():
    assert {path.stem for path in TRACES} == {
        "default",
        "short_window",
        "window_of_one",
        "sensitivity_only",
        "magnitude",
        "exclude_names_adamw",
    }


def test_masks_equal_the_reference_at_every_step(trace):
    parameters = dict(trace.model.named_parameters())
    for step, _, _ in trace.steps():
        for name in trace.selected:
            expected = trace.tensors[f"after/{name}"][step - 1]
            assert torch.equal(parameters[name] == 0, expected == 0), f"{name} at step {step}"
            torch.testing.assert_close(parameters[name].detach(), expected, rtol=1e-5, atol=1e-6)


def test_thresholds_equal_the_reference_within_a_millionth(trace):
    num_choices = 0
    for step, (density, threshold), returned in trace.steps():
        if density is not None:
            assert returned[0] == pytest.approx(density, rel=1e-12), f"step {step}"
        assert (returned[1] is None) == (threshold is None), f"step {step}"
        if threshold is not None:
            num_choices += 1
            assert returned[1] == pytest.approx(threshold, rel=1e-6), f"step {step}"
    assert num_choices > 35


def test_averages_equal_the_reference_after_the_last_step(trace):
    for _ in trace.steps():
        pass
    for i, kind in enumerate(("sensitivity", "uncertainty")):
        for name in trace.names(kind):
            expected = trace.tensors[f"{kind}/{name}"]
            torch.testing.assert_close(
                trace.pruner.averages[name][i], expected, rtol=1e-5, atol=1e-12
            )


def test_selection_by_name_takes_the_parameters_that_the_reference_took(trace):
    for _ in trace.steps():
        pass
    # What the reference ever zeroed is recorded; what we zeroed is what the names select.
    recorded = {n for n in trace.selected if (trace.tensors[f"after/{n}"][-1] == 0).any()}
    zeroed = {n for n, p in trace.model.named_parameters() if (p == 0).any()}
    never_trained = {n for n in trace.names("initial") if not trace.tensors[f"grad/{n}"].any()}
    assert zeroed - never_trained == recorded - never_trained
    assert len(recorded) > 0.8 * len(trace.selected)


def _model_with_gradients():
    model = nn.Sequential(nn.Linear(4, 3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def _args(**changes):
    settings = dict(
        initial_threshold=1.0, final_threshold=0.5, warmup_steps=2, initial_warmup=1,
        final_warmup=1, beta1=0.85, beta2=0.95, deltaT=1,
    )  # fmt: skip
    return SimpleNamespace(**settings | changes)


def test_a_missing_gradient_is_an_error_that_names_the_parameter():
    model = _model_with_gradients()
    pruner = compat.Pruner(model, _args(), 10, mask_param_name=["weight"])
    model[0].weight.grad = None
    with pytest.raises(RuntimeError, match=r"0\.weight has no gradient"):
        pruner.update_and_pruning(model, 1)


def test_a_choice_of_nothing_prunes_nothing():
    model = _model_with_gradients()
    before = model[0].weight.detach().clone()
    pruner = compat.Pruner(model, _args(final_threshold=1.0), 10, mask_param_name=["weight"])
    for step in range(1, 11):
        assert pruner.update_and_pruning(model, step) == (1.0, None)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("changes", "named"), [({"beta2": 2.0}, "beta2"), ({"beta1": -0.1}, "beta1")]
)
def test_a_beta_that_would_be_another_method_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        compat.Pruner(_model_with_gradients(), _args(**changes), 10, mask_param_name=["weight"])


def test_a_pattern_or_a_name_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="encoder"):
        compat.Pruner(_model_with_gradients(), _args(), 10, mask_param_name=["encoder"])
    with pytest.raises(ValueError, match="Taylor"):
        compat.Pruner(
            _model_with_gradients(), _args(), 10, mask_param_name=["weight"], pruner_name="Taylor"
        )


def test_one_infinite_gradient_spoils_a_score_for_ever_but_prunes_nothing_by_it():
    """As the reference: not-a-number ranks last and is never below a threshold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = compat.Pruner(model, _args(), 12, mask_param_name=["weight"])
    weight = model[0].weight
    mean_sensitivity, mean_uncertainty, window = (torch.zeros(5, 6) for _ in range(3))
    num_choices = 0
    for step in range(1, 13):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        if step == 3:
            weight.grad[1, 1] = torch.inf
            weight.grad[2, 2] = torch.nan
        optimizer.step()
        before = weight.detach().clone()
        mean_sensitivity = 0.85 * mean_sensitivity + 0.15 * window
        mean_uncertainty = 0.95 * mean_uncertainty + 0.05 * (window - mean_sensitivity).abs()
        window = (before * weight.grad).abs()
        density, threshold = pruner.update_and_pruning(model, step)
        rank = int(30 * (1 - density))
        if threshold is not None:
            num_choices += 1
            scores = mean_sensitivity * mean_uncertainty
            expected = scores.flatten().kthvalue(rank).values
            torch.testing.assert_close(torch.tensor(threshold), expected)
            assert torch.equal(weight == 0, (scores < expected) | (before == 0)), step
    assert num_choices > 5
    assert scores.isnan().sum() == 2


def test_a_gradient_that_is_nowhere_finite_prunes_nothing():
    model = _model_with_gradients()
    before = model[0].weight.detach().clone()
    pruner = compat.Pruner(model, _args(), 10, mask_param_name=["weight"])
    for step in range(1, 11):
        model[0].weight.grad.fill_(torch.nan)
        pruner.update_and_pruning(model, step)
    assert torch.equal(model[0].weight, before)


def test_what_scripts_read_of_the_pruner_is_there():
    model = nn.Linear(2, 2, bias=False)
    args = SimpleNamespace(
        initial_threshold=1.0, final_threshold=0.5, warmup_steps=5, initial_warmup=1,
        final_warmup=1, beta1=0.5, beta2=0.5, deltaT=3,
    )  # fmt: skip
    pruner = compat.Pruner(model, args, 20, mask_param_name=["weight"])
    assert pruner.config["deltaT"] == 3 and pruner.mask_param_name == ["weight"]
    model.weight.grad = torch.ones(2, 2)
    importance = model.weight.detach().abs().clone()
    for step in (1, 2):
        pruner.update_and_pruning(model, step)
    # Two samples, and the zero that the first window begins with.
    torch.testing.assert_close(pruner.ipt["weight"], importance * 2 / 3)
    assert not pruner.exp_avg_ipt["weight"].any() and not pruner.exp_avg_unc["weight"].any()
    pruner.update_and_pruning(model, 3)
    torch.testing.assert_close(pruner.ipt["weight"], importance)
    torch.testing.assert_close(pruner.exp_avg_ipt["weight"], importance / 3)
    torch.testing.assert_close(pruner.exp_avg_unc["weight"], importance / 6)
