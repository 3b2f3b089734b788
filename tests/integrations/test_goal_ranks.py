"""The trainers over two processes with ``max_drop``: they go back together, and resume so."""

import lightning_jobs
import pytest
import ranks
import torch
import trainer_jobs
from tiny_trainer import SELECTED, zeros_of
from transformers import BertForSequenceClassification

LAYOUTS = {
    "ddp": None,
    "fsdp": {"state_dict_type": "SHARDED_STATE_DICT"},
}
# Ramp of 3 to 15, cool-down of 5: what fails at 12 goes back to 8, until 17.
VALUES = {12: 0.5}
AMOUNT = 0.8 * 5 / 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_trainer_goes_back_in_all_processes_and_resumes_bit_by_bit(tmp_path, layout):
    at = [16] if layout == "ddp" else [12]  # within the cool-down, and where it went back
    answers = ranks.run(
        2, trainer_jobs.train_to_a_goal, str(tmp_path), VALUES, LAYOUTS[layout], at, timeout=180
    )
    expected = answers[0][0]["weights"]
    for straight, resumed in answers:
        assert straight["sharded"] == (layout != "ddp")
        for one in (straight, *resumed):
            assert one["last_step"] == 12 + 5
            assert one["goal"] == "33.3 % pruned, made_up 1 (dense 1); 60 % gave 0.5"
            for name, weight in expected.items():
                assert torch.equal(one["weights"][name], weight), name
    model = BertForSequenceClassification.from_pretrained(tmp_path / "final")
    assert zeros_of(model) == round(AMOUNT * SELECTED)
    assert model.config.platon_prune["result"] == answers[0][0]["goal"]


def test_lightning_goes_back_under_ddp_and_resumes_bit_by_bit(tmp_path):
    answers = ranks.run(2, lightning_jobs.fit_to_a_goal, str(tmp_path), {12: 0.5}, timeout=180)
    expected = answers[0][0]["weights"]
    for straight, resumed in answers:
        for one in (straight, resumed):
            # 0.8 * 6 / 18 at step 9 held; 12 failed, and its cool-down is of 9 steps.
            assert one["goal"] == "26.7 % pruned, accuracy 1 (dense 1); 40 % gave 0.5"
            assert one["last_step"] == 12 + 9
            for name, weight in expected.items():
                assert torch.equal(one["weights"][name], weight), name
    zeros = sum(int((expected[f"net.{i}.weight"] == 0).sum()) for i in (0, 2))
    assert zeros == round(0.8 * 6 / 18 * (12 * 16 + 16 * 2))
