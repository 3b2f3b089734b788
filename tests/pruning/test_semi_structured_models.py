"""Which tensors n:m takes, along which dimension, in every kind of module; compiled and saved."""

import copy
import warnings

import pytest
import tiny_transformers
import torch
from tiny import CASES, go_on, sample
from torch import nn

import platon_prune

SETTINGS = dict(total_steps=12, window=2)


def _pruned(model, run, **settings):
    scheduler = platon_prune.semi_structured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | settings
    )
    go_on(model, run, scheduler, 12)
    return scheduler


def _groups(tensor, dim, m):
    return tensor.movedim(dim, -1).reshape(-1, m)


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("linear", {"0.weight": 1, "2.weight": 1}),
        ("conv1d", {"weight": 1}),
        ("conv2d", {"weight": 1}),
        ("transposed conv1d", {"weight": 0}),
        ("transposed conv2d", {"weight": 0}),
        ("attention", {"in_proj_weight": 1, "out_proj.weight": 1}),
        ("attention of three widths", dict.fromkeys(["q_proj_weight", "k_proj_weight"], 1)),
        ("encoder layer", {"self_attn.in_proj_weight": 1, "linear2.weight": 1}),
        ("transformers' Conv1D", {"0.weight": 0, "2.weight": 0}),
        ("LSTM", {"weight_ih_l0": 1}),
        ("tied linears", {"0.weight": 1}),
    ],
)
def test_groups_lie_along_the_inputs_of_every_kind_of_module(name, dims):
    torch.manual_seed(0)
    case = CASES[name]
    model = case.build()
    # 2 divides all inputs of these cases but the 3 of the LSTM's hidden state.
    include = ["weight_ih_l0"] if name == "LSTM" else None
    scheduler = _pruned(model, case.run, n=1, m=2, include=include)
    masks = scheduler.masks()
    assert dims.keys() <= masks.keys()
    for tensor, dim in dims.items():
        assert (_groups(masks[tensor], dim, 2).sum(1) == 1).all(), tensor
    scheduler.remove()
    assert case.run(model).isfinite().all()


class _Experts(nn.Module):
    def __init__(self, transposed):
        super().__init__()
        self.is_transposed = transposed
        self.up = nn.Parameter(torch.randn(3, *((4, 6) if transposed else (6, 4))))

    def forward(self, x):
        up = self.up if self.is_transposed else self.up.transpose(1, 2)
        return torch.einsum("bi,eio->beo", x, up)


@pytest.mark.parametrize(("transposed", "dim"), [(False, 2), (True, 1)])
def test_experts_that_are_stored_transposed_are_cut_along_their_inputs_too(transposed, dim):
    model = nn.Sequential(_Experts(transposed))
    scheduler = _pruned(model, lambda model: model(sample(5, 4)))
    mask = scheduler.masks()["0.up"]
    assert (_groups(mask, dim, 4).sum(1) == 2).all()


@pytest.mark.parametrize("build", [tiny_transformers.bert, tiny_transformers.gpt2])
def test_transformers_models_are_pruned_saved_and_reloaded(build, tmp_path):
    torch.manual_seed(0)
    model = build()

    def run(model):
        return model(input_ids=torch.arange(8).view(2, 4)).logits

    scheduler = _pruned(model, run, n=2, m=4)
    assert platon_prune.check_semi_structured(model).holds
    scheduler.remove()
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert platon_prune.check_semi_structured(reloaded).holds
    torch.testing.assert_close(run(reloaded.eval()), run(model.eval()))


# --- what does not fit --------------------------------------------------------------------------


def _odd():
    return nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 4))


def test_a_tensor_whose_inputs_m_does_not_divide_is_left_out_with_a_warning():
    with pytest.warns(platon_prune.PruningWarning, match=r"left out of 2:4 .*0\.weight has 9 inp"):
        scheduler = platon_prune.semi_structured(
            _odd(), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )
    assert list(scheduler.masks()) == ["1.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        platon_prune.semi_structured(
            _odd(), exclude="0.weight", **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )


@pytest.mark.parametrize("how", ["include", "pairs", "nothing left"])
def test_one_that_was_named_is_refused_and_the_model_untouched(how):
    model = _odd()
    keys = list(model.state_dict())
    given = {"include": dict(include=["weight"]), "pairs": {}, "nothing left": dict(exclude="1")}
    subject = [(model[0], "weight")] if how == "pairs" else model
    with pytest.raises(ValueError, match=r"weight has 9 inputs \(dimension 1 of \(8, 9\)\)"):
        platon_prune.semi_structured(
            subject, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS, **given[how]
        )
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.Linear(4, 4), r"bias has shape \(4,\) and so no dimension of inputs"),
        (nn.ConvTranspose1d(4, 4, 3, groups=2), "2 inputs in each of 2 groups"),
        (nn.Conv2d(4, 4, 3, groups=4), "has 1 inputs"),
    ],
)
def test_what_has_no_groups_is_refused_by_name(model, what):
    with pytest.raises(ValueError, match=what):
        platon_prune.semi_structured(
            model, include=["weight", "bias"], **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )


def test_one_weight_read_along_two_dimensions_is_refused():
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(nn.Linear(4, 4), Conv1D(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"inputs are its dimensions \[0, 1\]"):
        platon_prune.semi_structured(
            model, include=["weight"], **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )


@pytest.mark.parametrize("amount", [-0.1, 1.5, 2])
def test_a_share_outside_0_and_1_is_refused(amount):
    with pytest.raises(ValueError, match=r"amount must be in \[0, 1\]"):
        platon_prune.semi_structured(
            nn.Linear(4, 4), amount=amount, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )
    with pytest.raises(TypeError, match="amount must be a share"):
        platon_prune.semi_structured(
            nn.Linear(4, 4), amount="all", **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )


# --- compiled, traced, exported -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "conv2d", "encoder layer"])
def test_compiled_and_exported_models_equal_eager_ones_while_masks_change(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    case, compilations = CASES[name], []
    model = case.build()

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    scheduler = platon_prune.semi_structured(
        model, n=1, m=2, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for _ in range(4):
        go_on(model, lambda model: case.run(compiled), scheduler, 3)
    assert len(compilations) == 1
    model.eval()
    inputs = []
    handle = model.register_forward_pre_hook(lambda module, args: inputs.append(args))
    expected = case.run(model)
    handle.remove()
    exported = torch.export.export(copy.deepcopy(model), inputs[0])
    torch.testing.assert_close(exported.module()(*inputs[0]), expected)
