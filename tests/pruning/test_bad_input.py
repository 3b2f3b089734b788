"""Bad input is a clear error that names the value and the remedy and leaves the model untouched."""

import copy
import gc
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune.criteria import Magnitude

GOOD = dict(amount=0.5, total_steps=100)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def _fingerprint(model):
    return (
        [(type(m), list(m._forward_pre_hooks), list(m._parameters), list(m._buffers))
         for m in model.modules()],
        [id(parameter) for parameter in model.parameters()],
    )  # fmt: skip


def _refused(model, error, message, **settings):
    """Assert the error, and that the model is as it was."""
    before = _fingerprint(model)
    values = [None if p.is_meta else p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        platon_prune.global_unstructured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD | settings
        )
    assert _fingerprint(model) == before
    for parameter, value in zip(model.parameters(), values, strict=True):
        assert value is None or torch.equal(parameter, value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(amount=1.0), ValueError, r"amount must be in \[0, 1\), got 1.0"),
        (dict(amount=-0.1), ValueError, r"amount must be in \[0, 1\), got -0.1"),
        (dict(amount=float("nan")), ValueError, "amount must be .* got nan"),
        (dict(amount=41), ValueError, "at most the 40 selected weights.* got 41"),
        (dict(amount=-1), ValueError, "amount must be at most .* got -1"),
        (dict(amount="0.9"), TypeError, "amount must be .* got '0.9'"),
        (dict(amount=True), TypeError, "amount must be .* got True"),
        (dict(initial_amount=0.6), ValueError, "initial_amount must not exceed amount"),
        (dict(initial_amount=-0.5), ValueError, "initial_amount must be in .* got -0.5"),
        (dict(warmup_steps=60, cooldown_steps=40), ValueError, r"60 \+ 40 >= 100: shorten"),
        (dict(window=0), ValueError, "window must be at least 1, got 0"),
        (dict(window=2.5), TypeError, "window must be a whole number .* got 2.5"),
        (dict(total_steps=1000.0), TypeError, "total_steps must be a whole number"),
        (dict(beta1=1.0), ValueError, r"beta1 must be in \[0, 1\), got 1.0"),
        (dict(beta2=-0.1), ValueError, r"beta2 must be in \[0, 1\), got -0.1"),
        (dict(beta2=float("nan")), ValueError, "beta2 must be .* got nan"),
        (dict(beta1="0.8"), TypeError, "beta1 must be a number .* got '0.8'"),
        (dict(include=[]), ValueError, "include must name at least one substring"),
        (dict(include=[3]), TypeError, r"include must hold substrings .* got \[3\]"),
        (dict(include=0), TypeError, "include must hold substrings .* got 0"),
        (dict(exclude=7), TypeError, "exclude must hold substrings .* got 7"),
        (dict(criterion="taylor"), ValueError, "criterion must be one of platon.*'taylor'"),
        (dict(criterion=Magnitude), TypeError, r"got the class Magnitude: pass Magnitude\(\)"),
        (dict(criterion=["platon"]), ValueError, r"criterion must be one of .*\['platon'\]"),
        (dict(masking="soft"), ValueError, "masking must be .* got 'soft'"),
        (dict(include=["encoder"]), ValueError, "include must match .*'encoder' matches none.*0.w"),
        (dict(exclude="bert"), ValueError, "exclude must match .*'bert' matches none"),
        (dict(exclude=["weight"]), ValueError, "exclude must leave something.* none of 2"),
        (dict(window=101), ValueError, "choice at step 100 with window=101: use a shorter window"),
        (dict(window=60, cooldown_steps=50), ValueError, "choice at step 50 with window=60"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, error, message):
    _refused(_model(), error, message, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(amount=90),
            r"amount must be at least 1 % of the 10000 .* from 2 to 99, got 90, which is 0.9 %: "
            r"for 90 % give 0.9, and for 90 weights the fraction 0.009$",
        ),
        (dict(amount=2), r"got 2, which is 0.02 %: for 2 % give 0.02, .* the fraction 0.0002$"),
        (
            dict(amount=0.5, initial_amount=20),
            r"initial_amount must be .* got 20, .* for 20 % give 0.2, .* the fraction 0.002$",
        ),
    ],
)
def test_a_count_that_would_be_a_percentage_is_refused_below_one_percent(settings, message):
    _refused(nn.Linear(100, 100), ValueError, message, **settings)


def test_the_fraction_that_a_refusal_names_prunes_that_count():
    torch.manual_seed(0)
    model = nn.Linear(13, 1001)  # 90 of 13013 is no short decimal
    with pytest.raises(ValueError, match="for 90 weights the fraction") as caught:
        platon_prune.global_unstructured(model, amount=90, total_steps=20)
    fraction = float(str(caught.value).rpartition(" ")[2])
    scheduler = platon_prune.global_unstructured(
        model, amount=fraction, total_steps=20, criterion="magnitude"
    )
    for _ in range(20):
        scheduler.step()
    assert int((~scheduler.masks()["weight"]).sum()) == 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(amount=90), r"amount=90 prunes 90 of the 9000 .* \(1 %\).* such as 0.9$"),
        (
            dict(amount=1),
            r"amount=1 prunes 1 of the 9000 selected weights \(0.011 %\), .* such as 0.01$",
        ),
        (
            dict(amount=0.5, initial_amount=95),
            r"initial_amount=95 prunes 95 .* initial_amount as a fraction below 1, such as 0.95$",
        ),
    ],
)
def test_a_count_that_looks_like_a_percentage_is_warned_about(settings, message):
    model = nn.Linear(90, 100)
    with pytest.warns(platon_prune.PruningWarning, match=message) as caught:
        platon_prune.global_unstructured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD | settings
        )
    assert caught[0].filename == __file__
    model = nn.Linear(90, 100)
    with pytest.raises(platon_prune.PruningWarning):
        platon_prune.global_unstructured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD | settings
        )
    assert list(model.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("amount", [0, 101, 0.009])
def test_a_count_that_is_no_percentage_and_a_small_fraction_are_not_warned_about(amount):
    platon_prune.global_unstructured(
        nn.Linear(100, 110), **dict(warmup_steps=0, cooldown_steps=0) | GOOD | dict(amount=amount)
    )


def test_a_count_of_one_in_a_hundred_is_not_warned_about():
    platon_prune.global_unstructured(
        nn.Linear(10, 10), **dict(warmup_steps=0, cooldown_steps=0) | GOOD | dict(amount=1)
    )


def test_a_lone_string_is_one_pattern():
    model = _model()
    scheduler = platon_prune.global_unstructured(
        model, include="2.", **dict(warmup_steps=0, cooldown_steps=0) | GOOD
    )
    assert set(scheduler.masks()) == {"2.weight", "2.bias"}


def test_criteria_without_windows_may_choose_before_one_ends():
    scheduler = platon_prune.global_unstructured(
        _model(),
        amount=0.5,
        total_steps=5,
        window=10,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
    )
    for _ in range(5):
        scheduler.step()
    assert scheduler.sparsity() == 0.5


def test_a_frozen_parameter_is_refused_by_name():
    model = _model()
    model[2].weight.requires_grad_(False)
    _refused(model, ValueError, "2.weight must require gradients.* exclude")


def test_an_integer_parameter_is_refused():
    model = _model()
    model[0].weight = nn.Parameter(torch.ones(5, 6, dtype=torch.int8), requires_grad=False)
    _refused(model, ValueError, "0.weight must be floating point, got torch.int8")


def test_pruning_twice_is_refused():
    model = _model()
    platon_prune.global_unstructured(model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD)
    _refused(model, ValueError, "0.weight must not be pruned already.*remove")


def test_pruning_over_a_torch_method_is_refused():
    model = _model()
    prune.l1_unstructured(model[2], "weight", 0.3)
    _refused(model, ValueError, "2.weight must not be pruned already")


def test_a_parametrized_tensor_is_refused():
    model = _model()
    nn.utils.parametrizations.orthogonal(model[0], "weight")
    pairs = [(model[0], "weight")]
    with pytest.raises(ValueError, match="ordinary parameter.*remove_parametrizations"):
        platon_prune.global_unstructured(pairs, **dict(warmup_steps=0, cooldown_steps=0) | GOOD)


def test_a_lazily_initialised_module_is_refused():
    model = nn.Sequential(nn.LazyLinear(5))
    with pytest.raises(ValueError, match="0.weight must have a shape.*run one batch"):
        platon_prune.global_unstructured(model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD)


def _linear_without_inputs():
    layer = nn.Linear(1, 3, bias=False)
    layer.weight = nn.Parameter(torch.empty(3, 0))
    return layer


def test_a_zero_size_tensor_is_refused():
    _refused(
        nn.Sequential(nn.Linear(3, 3), _linear_without_inputs()),
        ValueError,
        r"1.weight must have entries, got shape \(3, 0\)",
    )


def test_a_model_on_the_meta_device_is_refused_when_it_is_trained():
    with torch.device("meta"):
        model = _model()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD
    )
    with pytest.raises(RuntimeError, match="0.weight must have values.*materialise"):
        scheduler.step()


def test_a_model_that_gets_its_values_after_set_up_starts_with_nothing_pruned():
    with torch.device("meta"):
        model = _model()
    platon_prune.global_unstructured(model, **dict(warmup_steps=0, cooldown_steps=0) | GOOD)
    model.to_empty(device="cpu")
    assert model[0].weight_mask.all() and model[2].weight_mask.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_scores_are_kept_in_no_other_type(dtype):
    _refused(_model(), ValueError, "state_dtype must be torch.float32 or", state_dtype=dtype)


def test_a_model_without_weights_is_refused():
    _refused(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), ValueError, "model must have weights")


@pytest.mark.parametrize("subject", [None, 3, "model", [1, 2], [(nn.ReLU(), 3)], []])
def test_something_that_is_no_model_is_refused(subject):
    with pytest.raises(TypeError, match="model must be an nn.Module or an iterable"):
        platon_prune.global_unstructured(subject, **dict(warmup_steps=0, cooldown_steps=0) | GOOD)


def test_a_pair_that_names_no_parameter_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no parameter 'kernel'; it has: weight, bias"):
        platon_prune.global_unstructured(
            [(nn.Linear(2, 2), "kernel")], **dict(warmup_steps=0, cooldown_steps=0) | GOOD
        )


def test_patterns_with_pairs_are_refused():
    model = _model()
    with pytest.raises(ValueError, match="include and exclude are patterns"):
        platon_prune.global_unstructured(
            [(model[0], "weight")], include=["0"], **dict(warmup_steps=0, cooldown_steps=0) | GOOD
        )


def test_adapters_are_refused_with_what_to_do():
    model = _model()
    model.peft_config = {"default": None}
    _refused(model, ValueError, "must not carry adapters.*merge_and_unload")


def test_quantised_models_are_refused_with_what_to_do():
    model = _model()
    model.is_quantized = True
    _refused(model, ValueError, "must not be quantised")


# --- steps --------------------------------------------------------------------------------------


def _pruned(**settings):
    model = _model()
    return model, platon_prune.global_unstructured(
        model,
        **dict(warmup_steps=0, cooldown_steps=0)
        | dict(amount=0.5, total_steps=20, window=5)
        | settings,
    )


def _set_gradients(model, make=torch.randn_like):
    for parameter in model.parameters():
        parameter.grad = make(parameter)


def test_a_step_without_any_gradient_is_an_error_and_changes_nothing():
    model, scheduler = _pruned()
    _set_gradients(model)
    scheduler.step()
    model.zero_grad()
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(RuntimeError, match=r"0.weight.*no gradient: call scheduler.step\(\) after"):
        scheduler.step()
    after = scheduler.state_dict()
    assert after["last_step"] == before["last_step"] == 1
    assert torch.equal(
        after["tensors"]["0.weight"]["window"], before["tensors"]["0.weight"]["window"]
    )


def test_one_missing_gradient_is_a_zero_sample_and_a_warning_after_a_whole_window():
    model, scheduler = _pruned()
    message = re.escape("2.weight had no gradient for a whole window")
    for step in range(1, 6):
        _set_gradients(model)
        model[2].weight_orig.grad = None
        if step < 5:
            scheduler.step()
        else:
            with pytest.warns(platon_prune.PruningWarning, match=message + ".*exclude"):
                scheduler.step()
    assert not scheduler.score("2.weight").any()
    assert scheduler.score("0.weight").all()
    for _ in range(5):  # named once only: a warning would be an error here
        _set_gradients(model)
        model[2].weight_orig.grad = None
        scheduler.step()


def test_a_gradient_that_is_missing_only_sometimes_is_a_zero_sample():
    model, scheduler = _pruned(warmup_steps=6)
    for step in range(1, 6):
        _set_gradients(model, torch.ones_like)
        if step != 2:
            model[2].weight_orig.grad = None
        scheduler.step()
    # One sample |w * 1| among the window's 5 (the phantom zero and steps 1 to 4): mean |w| / 5.
    expected = 0.15 * model[2].weight_orig.abs() / 5
    sensitivity = scheduler.state_dict()["tensors"]["2.weight"]["sensitivity"]
    torch.testing.assert_close(sensitivity, expected.detach())


def test_a_step_after_finalizing_is_an_error():
    model, scheduler = _pruned()
    prune.remove(model[2], "weight")
    _set_gradients(model)
    with pytest.raises(
        RuntimeError, match="2.weight must carry the mask of this scheduler, but it was final"
    ):
        scheduler.step()
    assert scheduler.last_step == 0


def test_removing_twice_is_an_error():
    model, scheduler = _pruned()
    scheduler.remove()
    with pytest.raises(RuntimeError, match="finalized"):
        scheduler.remove()
    with pytest.raises(ValueError, match="model must carry masks of platon_prune"):
        platon_prune.remove(model)
    with pytest.raises(ValueError, match="model must carry masks of platon_prune"):
        platon_prune.apply_masks(model)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    _, scheduler = _pruned()
    with pytest.raises(KeyError, match="'0.weight_orig'; there are: 0.weight, 2.weight"):
        scheduler.score("0.weight_orig")


# --- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(version=99), "version 3, got version 99"),
        (lambda state: state.pop("version"), "version 3, got version None"),
        (lambda state: state["settings"].update(total_steps=7), "total_steps is 20 here and 7"),
        (lambda state: state["settings"].update(criterion="movement"), "criterion is 'platon'"),
        (lambda state: state["settings"].update(beta2=0.5), "beta2 is 0.95 here and 0.5"),
        (lambda state: state["tensors"].pop("2.weight"), "same model: 2.weight .* absent in the"),
        (
            lambda state: state["tensors"]["2.weight"].pop("uncertainty"),
            "state of 2.weight must hold .* lacks uncertainty",
        ),
        (
            lambda state: state["tensors"]["2.weight"].update(window=torch.zeros(3)),
            r"window of 2.weight must have shape \(2, 5\) in the state, got \(3,\)",
        ),
        (lambda state: state.pop("settings"), "state must hold settings.* lacks settings"),
        (
            lambda state: state["settings"].update(power=2),
            "power is 'absent' here and 2 in the state",
        ),
        (
            lambda state: state["tensors"]["0.weight"].update(mask=torch.ones(6, 5)),
            r"0.weight has shape \(5, 6\) here and \(6, 5\)",
        ),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(change, message):
    model, scheduler = _pruned()
    _set_gradients(model)
    scheduler.step()
    state = copy.deepcopy(scheduler.state_dict())
    state["last_step"] = 13
    change(state)
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state)
    assert scheduler.last_step == 1
    after = scheduler.state_dict()["tensors"]["0.weight"]
    assert torch.equal(after["window"], before["tensors"]["0.weight"]["window"])


def test_a_state_of_another_number_of_steps_or_masking_is_refused():
    _, scheduler = _pruned()
    for other in (dict(total_steps=21), dict(masking="window"), dict(amount=0.4)):
        _, another = _pruned(**other)
        with pytest.raises(ValueError, match=next(iter(other))):
            scheduler.load_state_dict(another.state_dict())


def test_the_lengths_of_a_run_can_be_set_before_its_first_step_only():
    model, scheduler = _pruned()
    scheduler.reschedule(total_steps=12, warmup_steps=2, cooldown_steps=3)
    assert scheduler.schedule.ramp_end == 9
    with pytest.raises(ValueError, match="choice at step 4 with window=5"):
        scheduler.reschedule(total_steps=12, cooldown_steps=8)
    with pytest.raises(ValueError, match=r"8 \+ 4 >= 12"):
        scheduler.reschedule(total_steps=12, warmup_steps=8, cooldown_steps=4)
    assert scheduler.schedule.ramp_end == 9
    for _ in range(12):
        _set_gradients(model)
        scheduler.step()
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == 20
    with pytest.raises(RuntimeError, match="before the first step, got 12 steps"):
        scheduler.reschedule(total_steps=20)


@pytest.mark.parametrize("state", [None, [], {}, 3])
def test_something_that_is_no_state_is_refused(state):
    _, scheduler = _pruned()
    with pytest.raises(ValueError, match="state must be a PlatonScheduler's"):
        scheduler.load_state_dict(state)


def test_numpy_numbers_are_taken_and_saved_as_plain_ones(tmp_path):
    import numpy as np

    _, scheduler = _pruned(
        amount=np.float32(0.5), beta1=np.float64(0.8), total_steps=np.int64(20), window=np.int32(5)
    )
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    scheduler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_scheduler_whose_masks_were_replaced_by_another_is_refused():
    model, scheduler = _pruned()
    platon_prune.remove(model)
    newer = platon_prune.global_unstructured(
        model, amount=0.2, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
    )
    _set_gradients(model)
    newer.step()
    with pytest.raises(RuntimeError, match="0.weight must carry the mask of this scheduler"):
        scheduler.step()


def test_a_parameter_of_another_shape_is_an_error_before_anything_changes():
    model, scheduler = _pruned()
    _set_gradients(model)
    scheduler.step()
    before = scheduler.state_dict()["tensors"]["0.weight"]["window"]
    model[2].weight_orig = nn.Parameter(torch.randn(3, 5))
    _set_gradients(model)
    with pytest.raises(RuntimeError, match=r"2.weight must keep its shape \(2, 5\), got \(3, 5\)"):
        scheduler.step()
    assert torch.equal(scheduler.state_dict()["tensors"]["0.weight"]["window"], before)


def test_shared_weights_that_have_come_apart_are_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
    )
    _set_gradients(model)
    scheduler.step()
    model[1].weight_orig = nn.Parameter(torch.randn(4, 4))
    _set_gradients(model)
    with pytest.raises(RuntimeError, match="0.weight must be one parameter shared by 2 modules"):
        scheduler.step()


def test_set_up_is_all_or_nothing():
    class NoSubclass(type(nn.Module)):
        def __new__(cls, name, bases, body):
            if any(isinstance(base, NoSubclass) for base in bases):
                raise TypeError("this class can't be derived from")
            return super().__new__(cls, name, bases, body)

    class Final(nn.Linear, metaclass=NoSubclass):
        pass

    _refused(nn.Sequential(nn.Linear(3, 3), Final(3, 3)), TypeError, "can't be derived from")


def test_an_expanded_or_complex_weight_is_refused():
    model = _model()
    model[2].weight = nn.Parameter(torch.randn(1, 5).expand(2, 5))
    _refused(model, ValueError, "2.weight must have memory for each entry.*clone")
    model[2].weight = nn.Parameter(torch.randn(2, 5, dtype=torch.complex64))
    _refused(model, ValueError, "2.weight must be real, got torch.complex64")


def test_a_second_optimizer_to_follow_is_refused_until_the_first_is_let_go():
    model, scheduler = _pruned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = scheduler.step_with(optimizer)
    with pytest.raises(ValueError, match="must follow one optimizer, got a second"):
        scheduler.step_with(optimizer)
    handle.remove()
    scheduler.step_with(optimizer)
    _set_gradients(model)
    optimizer.step()
    assert scheduler.last_step == 1


def test_a_step_by_hand_is_refused_while_an_optimizer_is_followed():
    model, scheduler = _pruned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = scheduler.step_with(optimizer)
    for steps in (1, 2):
        _set_gradients(model)
        optimizer.step()
        with pytest.raises(RuntimeError, match="step must be counted once.*leave this call out"):
            scheduler.step()
        assert scheduler.last_step == steps
    scheduler.step(skipped=True)  # one that a GradScaler kept from the optimizer
    assert (scheduler.last_step, scheduler.skipped_steps) == (3, 1)
    another = copy.deepcopy(scheduler)  # follows nothing
    another.step(skipped=True)
    handle.remove()
    scheduler.step()
    assert (scheduler.last_step, another.last_step) == (4, 4)


def test_a_step_by_hand_is_taken_once_the_followed_optimizer_is_gone():
    model, scheduler = _pruned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler.step_with(optimizer)
    del optimizer
    gc.collect()
    _set_gradients(model)
    scheduler.step()
    assert scheduler.last_step == 1


@pytest.mark.parametrize("skipped", [torch.tensor(0.3), 0.3, 1, None, "no", torch.tensor([True])])
def test_a_loss_or_anything_else_is_no_answer_to_whether_the_step_was_skipped(skipped):
    model, scheduler = _pruned()
    _set_gradients(model)
    with pytest.raises(TypeError, match=r"skipped must be True or False.*call step\(\) without"):
        scheduler.step(skipped)
    assert scheduler.last_step == 0


def test_truth_values_of_numpy_and_torch_say_whether_the_step_was_skipped():
    import numpy as np

    _, scheduler = _pruned()
    for skipped in (True, np.bool_(True), torch.tensor(True)):
        scheduler.step(skipped)  # there are no gradients, which is an error unless it is skipped
    assert scheduler.skipped_steps == 3


@pytest.mark.parametrize("optimizer", [nn.Linear(2, 2), None, "sgd"])
def test_something_that_is_no_optimizer_is_not_followed(optimizer):
    _, scheduler = _pruned()
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got"):
        scheduler.step_with(optimizer)


def test_a_wrapped_optimizer_is_refused_with_what_to_do():
    accelerate = pytest.importorskip("accelerate")
    model, scheduler = _pruned()
    wrapper = accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"got AcceleratedOptimizer: .* \(optimizer.optimizer\)"):
        scheduler.step_with(wrapper)
    scheduler.step_with(wrapper.optimizer)
    _set_gradients(model)
    wrapper.step()
    assert scheduler.last_step == 1


@pytest.mark.parametrize("step", ["5", 1.0, True])
def test_a_step_that_is_no_whole_number_has_no_masks(step):
    _, scheduler = _pruned()
    with pytest.raises(TypeError, match=f"step must be a whole number.* got {step!r}"):
        scheduler.masks(step)


def test_set_up_in_inference_mode_can_be_trained():
    model = _model()
    with torch.inference_mode():
        scheduler = platon_prune.global_unstructured(
            model, amount=0.5, total_steps=20, window=5, warmup_steps=0, cooldown_steps=0
        )
    for _ in range(20):
        _set_gradients(model)
        scheduler.step()
    assert sum(int((~mask).sum()) for mask in scheduler.masks().values()) == 20


def test_the_settings_of_a_criterion_of_ones_own_belong_to_the_state():
    from platon_prune.criteria import Platon

    _, one = _pruned(criterion=Platon(beta1=0.5, beta2=0.6))
    _, other = _pruned(criterion=Platon(beta1=0.5, beta2=0.7))
    with pytest.raises(ValueError, match="beta2 is 0.7 here and 0.6 in the state"):
        other.load_state_dict(one.state_dict())
