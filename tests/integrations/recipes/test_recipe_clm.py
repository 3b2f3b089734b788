"""The recipe for causal language models: what is learnt of texts and chats, and what it leaves."""

import json
import math
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from recipe_models import CHAT_TEMPLATE, CHAT_WORDS, chat_tokenizer, results, run, save_llama
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from platon_prune import check_semi_structured
from platon_prune.integrations.recipes.clm.chat import encode_chat
from platon_prune.integrations.recipes.clm.training import collate, generate, losses_of

# Two layers: attention has 2 matrices of 16 x 16 and 2 of 16 x 8, the feed-forward part 3.
SELECTED = 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text("\n".join(["the cat sat on the mat .", "the dog sat on a cat ."] * 20))
    return path


def flags(model, folder, *more):
    return [
        "--model_name_or_path", model, "--output_dir", folder, "--block_size", 16,
        "--pruning_window", 2, "--save_strategy", "no", "--learning_rate", 1e-2, *more,
    ]  # fmt: skip


TRAIN = ("--do_train", "--do_eval", "--max_steps", 8, "--amount", 0.5)
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "i am a cat"},
    {"role": "user", "content": "who are you"},
    {"role": "assistant", "content": "a dog"},
]


# --- end to end ---------------------------------------------------------------------------------


def test_a_run_tells_perplexity_and_generations_before_and_after(llama, text, tmp_path, capsys):
    given = ("--train_file", text, "--validation_file", text, "--prompts", "the cat", "the dog")
    assert run("clm", *flags(llama, tmp_path, *TRAIN, *given, "--generation_tokens", 5)) == 0
    found = results(tmp_path)
    metrics = found["metrics"]
    # Nothing is known at first: each of the words is about as likely.
    assert metrics["before_perplexity"] == pytest.approx(len(CHAT_WORDS) + 2, rel=0.2)
    assert metrics["eval_perplexity"] < metrics["before_perplexity"] / 2
    # 40 lines of 7 words and an end token in blocks of 16: the first of each has no prediction.
    assert metrics["eval_tokens"] == 40 * 8 * 15 / 16
    assert (found["selected_weights"], found["pruned_weights"]) == (SELECTED, SELECTED / 2)
    assert [each["prompt"] for each in found["generations"]] == ["the cat", "the dog"]
    assert all(each.keys() == {"prompt", "before", "after"} for each in found["generations"])
    assert "after " in capsys.readouterr().out
    assert (tmp_path / "report.png").is_file()


def test_the_saved_model_has_the_perplexity_of_the_run(llama, text, tmp_path):
    given = ("--train_file", text, "--train_val_split", 0.25)
    assert run("clm", *flags(llama, tmp_path / "run", *TRAIN, *given)) == 0
    alone = ("--validation_file", text, "--do_eval", "--packing", "false", "--num_generations", 1)
    assert run("clm", *flags(tmp_path / "run", tmp_path / "eval", *alone)) == 0
    found = results(tmp_path / "eval")
    assert found["sparsity"] == 0.5 and "before_perplexity" not in found["metrics"]
    [generated] = found["generations"]
    assert generated.keys() == {"prompt", "after"}
    # By hand: each line with its end token.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer, total, count = chat_tokenizer(), 0.0, 0
    for line in text.read_text().splitlines():
        ids = torch.tensor([[*tokenizer(line)["input_ids"], 1]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found["metrics"]["eval_tokens"] == count
    assert found["metrics"]["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_chats_are_learnt_from_their_answers(llama, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join([json.dumps({"messages": CHAT})] * 20))
    given = ("--train_file", file, "--validation_file", file, "--packing", "false")
    more = ("--block_size", 40, "--num_generations", 1)
    assert run("clm", *flags(llama, tmp_path / "out", *TRAIN, *given, *more)) == 0
    found = results(tmp_path / "out")
    # Of each chat the two answers with their end: 5 and 3 words.
    assert found["metrics"]["eval_tokens"] == 20 * 8
    assert found["generations"][0]["prompt"] == "< user > hello end\n< assistant > "


@pytest.mark.parametrize(("words", "most"), [(4, 3), (7, 1), (9, 1)])
def test_no_more_is_generated_than_the_model_has_positions_for(words, most):
    # Positions beyond the seventh are none of a table, so that an eighth token would be an error.
    config = GPT2Config(
        vocab_size=len(CHAT_WORDS) + 2, n_positions=7, n_embd=8, n_layer=1, n_head=2
    )
    config.bos_token_id = config.eos_token_id = None
    prompt = " ".join(["cat"] * words)
    [found] = generate(GPT2LMHeadModel(config), chat_tokenizer(), [prompt], 40)
    assert len(found.split()) <= most


@pytest.mark.parametrize(("granularity", "amount"), [("semi_structured", 1.0), ("structured", 0.5)])
def test_every_granularity_prunes(llama, text, tmp_path, granularity, amount):
    given = ("--train_file", text, "--do_train", "--max_steps", 6, "--num_generations", 0)
    more = ("--pruning_granularity", granularity, "--gradient_checkpointing", "--bf16")
    state = ("--pruning_state_dtype", "bfloat16", "--pruning_offload_averages")
    assert run("clm", *flags(llama, tmp_path, *given, *more, *state)) == 0
    assert results(tmp_path)["settings"]["pruning"]["amount"] == amount
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    if granularity == "semi_structured":
        assert check_semi_structured(model).holds
        assert results(tmp_path)["sparsity"] == 0.5
    else:
        gates = [layer.mlp.gate_proj.weight for layer in model.model.layers]
        empty = [int((gate == 0).all(dim=1).sum()) for gate in gates]
        assert sum(empty) > 0


def test_a_resumed_run_ends_as_an_uninterrupted_one(llama, text, tmp_path):
    given = ("--train_file", text, "--validation_file", text, *TRAIN, "--save_strategy", "steps")
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run("clm", *flags(llama, whole, *given, "--save_steps", 4)) == 0
    again.mkdir()
    for name in ("checkpoint-4", "before.json"):
        (whole / name).rename(again / name)
    more = ("--save_steps", 4, "--resume_from_checkpoint", "true")
    assert run("clm", *flags(llama, again, *given, *more)) == 0
    assert results(again)["generations"] == results(whole)["generations"]
    for name in ("before_perplexity", "eval_perplexity", "eval_loss"):
        assert results(again)["metrics"][name] == results(whole)["metrics"][name], name


def test_a_teacher_is_heard(llama, text, tmp_path):
    given = ("--train_file", text, "--do_train", "--max_steps", 4, "--num_generations", 0)
    found = []
    for name, more in (("alone", ()), ("taught", ("--teacher_name_or_path", llama))):
        folder = tmp_path / name
        assert run("clm", *flags(llama, folder, *given, *more)) == 0
        found.append(results(folder)["metrics"]["train_loss"])
    assert found[0] != found[1]


# --- tokens -------------------------------------------------------------------------------------


def test_the_labels_of_a_chat_are_its_answers_with_their_ends():
    tokenizer = chat_tokenizer()
    encoded = encode_chat("f", 1, tokenizer, CHAT)
    learnt = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(learnt) == "i am a cat end a dog end"
    whole = "< user > hello end < assistant > i am a cat end < user > who are you end"
    assert tokenizer.decode(encoded["input_ids"]) == f"{whole} < assistant > a dog end"


def test_a_template_that_rewrites_what_came_before_is_refused():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ messages | length }} " + CHAT_TEMPLATE
    with pytest.raises(ValueError, match="another text at message 2 of row 7"):
        encode_chat("f", 7, tokenizer, CHAT)


def test_padding_needs_no_pad_token_and_is_not_learnt():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}])  # fmt: skip # noqa: E501
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, 9, -100]]


def test_losses_are_sums_over_the_tokens_that_have_a_label():
    logits = torch.zeros(1, 4, 8)
    found = losses_of(logits, torch.tensor([[3, 4, -100, 5]]))
    # The first is predicted by nothing, one has no label: two are left, each as likely as 7 others.
    assert found.tolist() == [[pytest.approx(2 * math.log(8)), 2.0]]


@pytest.mark.parametrize(("example", "texts"), [("line", 3), ("passage", 2)])
def test_an_example_is_a_line_or_a_passage(llama, tmp_path, capsys, example, texts):
    file = tmp_path / "cats.txt"
    file.write_text("the cat\nsat on\n\n\nthe mat\n")
    given = ("--validation_file", file, "--do_eval", "--example", example)
    assert run("clm", *flags(llama, tmp_path / "out", *given)) == 0
    assert f"validation: {texts} examples, 1 blocks" in capsys.readouterr().out
    # Six words, and an end after each example; the first token is predicted by nothing.
    assert results(tmp_path / "out")["metrics"]["eval_tokens"] == 6 + texts - 1


# --- errors before training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("", (), "must hold text, got none"),
        ("cat", ("--block_size", 65), "--block_size must be at most 64, the longest input"),
        ("cat", ("--block_size", 1), "--block_size must be at least 2"),
        ("cat", ("--lora_r", 8), "got --lora_r: LoRA trains small matrices beside frozen weights"),
        ("cat", ("--do_predict",), "clm knows no --do_predict"),
        ("cat", ("--pruning_granularity", "structured", "--amount", 1), "fraction in [0, 1) for"),
        ("cat", ("--pruning_granularity", "semi_structured", "--pruning_max_amount", 0.9),
         "--pruning_max_amount must go with --pruning_granularity unstructured"),
        ([{"x": 1, "y": 2}], (), "must have a column messages or text, got x, y"),
        ([{"messages": "hi", "y": 1}, {"messages": 3}], (), "messages must be text, got 3 in row"),
        ([{"messages": CHAT[:1]}], (), "must have an answer (role assistant) to learn"),
        ([{"messages": [{"role": "user"}]}], (), "list of messages with role and content"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_training(llama, tmp_path, capsys, content, more, message):
    file = tmp_path / ("cats.txt" if isinstance(content, str) else "cats.jsonl")
    file.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
    given = ("--train_file", file, "--do_train", "--max_steps", 4)
    assert run("clm", *flags(llama, tmp_path / "out", *given, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_refused_with_the_reason(text, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run("clm", *flags(tmp_path, tmp_path / "out", "--do_eval")) == 2
    shown = capsys.readouterr().err
    assert "got an adapter" in shown and "merge it first" in shown
