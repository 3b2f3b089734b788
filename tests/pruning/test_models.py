"""Transformers models of every kind: pruned while trained, finalized, saved, reloaded, equal."""

import pytest
import torch
import transformers as tf

import platon_prune

STEPS = 24


def _tokens(seed, size=10):
    return torch.randint(5, 50, (4, size), generator=torch.Generator().manual_seed(seed))


def _classified(seed):
    return {"input_ids": _tokens(seed), "labels": torch.arange(4) % 2}


def _continued(seed):
    return {"input_ids": _tokens(seed), "labels": _tokens(seed)}


def _translated(seed):
    return {"input_ids": _tokens(seed), "labels": _tokens(seed + 100, 6)}


def _seen(seed):
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, "labels": torch.arange(4) % 2}


ENCODER = dict(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=16, initializer_range=0.3,
)  # fmt: skip
DECODER = ENCODER | dict(num_key_value_heads=1)

# With a wide initialisation: at the usual 0.02 the attention of so small a model does nothing yet,
# so its queries and keys have no sensitivity.
# Name: how to build it, how to make a batch, and how many weights are selected (by hand).
ATTENTION, FEED_FORWARD = 4 * 16 * 16, 2 * 16 * 32
GROUPED_ATTENTION = (16 + 8 + 8 + 16) * 16  # one key-value head of two
MODELS = {
    "bert": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**ENCODER)),
        _classified,
        2 * (ATTENTION + FEED_FORWARD),
    ),
    "roberta": (
        lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**ENCODER)),
        _classified,
        2 * (ATTENTION + FEED_FORWARD),
    ),
    "deberta-v3": (
        lambda: tf.DebertaV2ForSequenceClassification(
            tf.DebertaV2Config(
                **ENCODER, relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"],
                share_att_key=True, norm_rel_ebd="layer_norm", type_vocab_size=0,
                position_biased_input=False,
            )
        ),
        _classified,
        2 * (ATTENTION + FEED_FORWARD),
    ),
    "vit": (
        lambda: tf.ViTForImageClassification(
            tf.ViTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                image_size=8, patch_size=4, initializer_range=0.3,
            )
        ),
        _seen,
        2 * (ATTENTION + FEED_FORWARD) + 16 * 3 * 4 * 4,
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, n_inner=32,
                initializer_range=0.3,
            )
        ),
        _continued,
        2 * (ATTENTION + FEED_FORWARD),
    ),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=50, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=2,
                decoder_start_token_id=0, tie_word_embeddings=False,
            )
        ),
        _translated,
        2 * (ATTENTION + FEED_FORWARD) + 2 * (2 * ATTENTION + FEED_FORWARD),
    ),
    "llama": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)),
        _continued,
        2 * (GROUPED_ATTENTION + 3 * 16 * 32),
    ),
    "mixtral": (
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
        ),
        _continued,
        2 * (GROUPED_ATTENTION + 4 * 3 * 16 * 32),
    ),
}  # fmt: skip


def _train(model, batch_of, **settings):
    """Through six windows of four steps; returns the counts after each choice."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.6, total_steps=STEPS, warmup_steps=4, cooldown_steps=8, window=4, **settings
    )
    counts = {}
    model.train()
    for step in range(1, STEPS + 1):
        model(**batch_of(step)).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if scheduler.schedule.is_choosing_step(step):
            counts[step] = sum(int((~mask).sum()) for mask in scheduler.masks().values())
    return scheduler, counts


def _logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_exactly_finalized_saved_and_reloaded_with_equal_logits(name, tmp_path):
    build, batch_of, num_selected = MODELS[name]
    torch.manual_seed(0)
    model = build()
    scheduler, counts = _train(model, batch_of)
    masks = scheduler.masks()
    assert sum(mask.numel() for mask in masks.values()) == num_selected
    # The ramp is from 4 to 16: a third, two thirds, all of it; the final phase keeps the amount.
    shares = {8: 1 - (2 / 3) ** 3, 12: 1 - (1 / 3) ** 3, 16: 1, 20: 1, 24: 1}
    assert counts == {step: round(0.6 * s * num_selected) for step, s in shares.items()}
    assert all(mask.any() for mask in masks.values()), "no layer is emptied"

    pruned = _logits(model, batch_of(99))
    platon_prune.remove(model)
    assert torch.equal(_logits(model, batch_of(99)), pruned)
    assert not any(module._forward_pre_hooks for module in model.modules())

    model.save_pretrained(tmp_path)
    reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(_logits(reloaded, batch_of(99)), pruned)
    parameters = dict(reloaded.named_parameters())
    for tensor, mask in masks.items():
        assert not parameters[tensor][~mask].any(), tensor
    total = platon_prune.summary(reloaded).total
    assert total.numel == num_selected
    assert total.numel - total.kept >= round(0.6 * num_selected)
