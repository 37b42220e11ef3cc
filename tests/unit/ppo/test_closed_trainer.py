"""Training on all allowed answers at once: what it learns, what it must not see, and that it can stop and resume."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_trainer import TOKENIZER, metrics, questions, same, table, trainer, weights

from elkflow.common.errors import UserError
from elkflow.config.ppo import RunSettings
from elkflow.ppo import closed_set
from elkflow.ppo.closed_trainer import ClosedTrainer
from elkflow.ppo.questions import preferred_answers
from elkflow.ppo.schedule import batch_rows
from elkflow.rewards.lookup import TableRewards

FULL = {"train": "full", "batch_size": 24, "evaluate_rows": 24, "minibatch_size": 8, "sentinel": None}


def closed(folder, algorithm="ppo", **settings):
    return ClosedTrainer(trainer(folder, **{"actions": "all"} | settings).session, algorithm)


@pytest.mark.parametrize("algorithm", ["ppo", "exact", "sft", "dpo"])
def test_it_learns_what_is_rewarded(tmp_path, algorithm):
    made = closed(tmp_path, algorithm, **FULL, learning_rate=3e-3, steps=25, warm_start=2, kl={"coefficient": 0.1})
    assert made.train().outcome == "finished"
    rows = metrics(tmp_path)
    assert rows[0]["held_out_accuracy"] <= 0.6
    assert rows[-1]["held_out_reward"] >= 0.9 and rows[-1]["held_out_accuracy"] >= 0.9
    assert rows[-1]["reward"] > 0.8, "what the policy would earn, in expectation"


@pytest.mark.parametrize("algorithm", ["ppo", "exact", "sft", "dpo"])
def test_labels_change_no_update(tmp_path, algorithm):
    asked = questions()
    flipped = replace(asked, labels=[1 - label for label in asked.labels])
    found = []
    for name, given in (("as they are", asked), ("flipped", flipped)):
        made = closed(tmp_path / name, algorithm, asked=given, reward=table(asked), steps=3)
        made.train()
        found.append(weights(made))
    same(*found)


def test_log_probabilities_are_those_of_the_model(tmp_path):
    made = closed(tmp_path)
    asked, policy = made.session.questions, made.policy
    found = made.logprobs(made.read(list(range(5)), [3, 0, 4])).detach()
    for row, position in enumerate((3, 0, 4)):
        ids = torch.tensor([asked.tokens[position]])
        alone = policy.base(input_ids=ids).logits[0, -1].log_softmax(-1)
        wanted = [alone[TOKENIZER(text)["input_ids"][0]] for text in asked.answers[position]]
        torch.testing.assert_close(found[row, :2], torch.stack(wanted).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3))


def test_answers_of_several_tokens_end_in_any_end_token(tmp_path):
    asked = questions()
    longer = replace(asked, answers=[["No", "Yes paris"]] * len(asked))
    reward = TableRewards(longer.prompts, longer.answers, [[0.0, 1.0]] * len(asked))
    made = closed(tmp_path, asked=longer, reward=reward, max_new_tokens=2)
    made.session.ends = {3, 5}
    found = made.logprobs(made.read([0], [0])).detach()[0]
    no, yes, paris = (TOKENIZER(text)["input_ids"][0] for text in ("No", "Yes", "paris"))

    def after(ids):
        return made.policy.base(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)

    prompt = asked.tokens[0]
    first, behind_no, behind_yes = after(prompt), after([*prompt, no]), after([*prompt, yes])
    assert found[0].item() == pytest.approx((first[no] + behind_no[[3, 5]].logsumexp(0)).item(), abs=1e-4)
    assert found[1].item() == pytest.approx((first[yes] + behind_yes[paris]).item(), abs=1e-4)


def test_a_warm_start_balances_the_answers(tmp_path):
    made = closed(tmp_path, **FULL, learning_rate=3e-3, steps=11, warm_start=10)
    for _ in range(10):
        made.step()
    read = made.read(list(range(24)), list(range(24)))
    shares = made.logprobs(read).detach().exp()
    assert (shares[:, :2] - 0.5).abs().max() < 0.1 and made.session.learning_rate == 3e-3


@pytest.mark.parametrize("algorithm", ["ppo", "exact", "sft", "dpo"])
@pytest.mark.parametrize("settings", [{"accumulation": 2}, {"batch_size": 8, "minibatch_size": 8}])
def test_parts_do_not_change_the_update(tmp_path, algorithm, settings):
    found = []
    for name, given in (("whole", {}), ("parts", settings)):
        made = closed(tmp_path / name, algorithm, steps=2, **{"batch_size": 8, "minibatch_size": 8} | given)
        made.train()
        found.append(weights(made))
    same(*found, tolerance=2e-4)


@pytest.mark.parametrize("algorithm", ["ppo", "exact", "sft", "dpo"])
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, algorithm):
    straight = closed(tmp_path / "straight", algorithm, steps=4)
    straight.train()
    asked = []

    def stopping():
        asked.append(True)
        return len(asked) == 2

    first = closed(tmp_path / "stopped", algorithm, steps=4, stopping=stopping)
    assert first.train().outcome == "interrupted"
    second = closed(tmp_path / "stopped", algorithm, steps=4)
    assert second.train().outcome == "finished"
    same(weights(straight), weights(second))
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "stopped")


def test_every_stretch_of_prompts_has_its_share_of_each_preferred_answer():
    strata = [1 if i % 10 < 3 else 0 for i in range(200)]
    rows = [row for step in range(10) for row in batch_rows(200, 20, step, seed=4, strata=strata)]
    assert sorted(rows) == list(range(200)), "a pass over all prompts"
    counts = [sum(strata[row] for row in rows[at : at + 10]) for at in range(0, 200, 10)]
    assert set(counts) <= {2, 3, 4} and sum(counts) == 60
    assert rows != [row for step in range(10) for row in batch_rows(200, 20, step, seed=5, strata=strata)]


def test_one_answer_to_everything_is_a_collapse(tmp_path):
    """A policy that is certain of No, with rewards for Yes half of the time, at a learning rate of nearly nothing."""
    made = closed(tmp_path, steps=20, learning_rate=1e-9, batch_size=24, minibatch_size=8)
    no = TOKENIZER("No")["input_ids"][0]

    def certain(read):
        logprobs = torch.full((len(read.rows), 2), -9.0)
        logprobs[:, 0] = -1e-3
        return closed_set.with_remainder(logprobs + 0 * made.policy.value_head.bias)

    made.logprobs = certain
    done = made.train()
    assert done.outcome == "collapsed" and done.step == 6 and no is not None
    assert "one answer is given to 99.9% of the questions for 6 steps, though the rewards prefer it to" in done.reason
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["one_answer"] > 0.99 and 0.2 < logged[-1]["preferred"] < 0.8


def test_preferences_are_those_of_the_table():
    asked = questions()
    assert preferred_answers(asked, table(asked)) == asked.labels
    assert preferred_answers(asked, lambda prompts, responses: torch.zeros(len(prompts))) is None


def test_questions_with_unequal_numbers_of_answers_are_refused(tmp_path):
    asked = questions(2)
    odd = replace(asked, answers=[["No", "Yes"], ["No", "Yes", "paris"]])
    reward = TableRewards(odd.prompts, odd.answers, [[0.0, 1.0], [0.0, 1.0, 0.0]])
    with pytest.raises(UserError, match="as many answers for every question"):
        closed(tmp_path, asked=odd, reward=reward, batch_size=2, evaluate_rows=2)


RUN = {"policy": "m", "probe": "p", "dataset": "d", "wording": "w"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "exact", "reward": "mine:f"},
            "algorithm: exact needs the rewards of all allowed answers",
        ),
        (
            {"ppo": {"steps": 2, "actions": "all"}, "reward": "mine:f"},
            "for a reward of your own set `actions: sampled`",
        ),
        ({"algorithm": "sft", "reward": "mine:f"}, "algorithm: sft needs the rewards of all allowed answers"),
        ({"algorithm": "exact", "ppo": {"steps": 2, "kl": {"coefficient": 0}}}, "needs a fixed coefficient above 0"),
        (
            {"algorithm": "dpo", "ppo": {"steps": 2, "kl": {"coefficient": 0}}},
            "algorithm: dpo needs a fixed coefficient",
        ),
        ({"ppo": {"steps": 2, "actions": "all", "warm_start": 2}}, "2 of 2 steps leave none to train in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSettings.model_validate(RUN | {"ppo": {"steps": 2}} | changes)
