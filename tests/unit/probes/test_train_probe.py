"""From files of hidden states to an admitted probe and its reward table."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import score_answers
import torch
import transfer_probe
from planted import BASE, CONVENTION, labels_of, pair_states, train, write_split
from safetensors.torch import load_file, save_file

from elkflow.common import manifests
from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table
from elkflow.common.metrics import resamples
from elkflow.config.probe import ProbeSettings
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs, assign_folds, split_groups
from elkflow.probes.controls import Control
from elkflow.probes.gate import control_table


def made(folder, *, sizes=(240, 120), wordings=("plain",), **options):
    """A train and a val split with a planted truth."""
    splits = []
    for seed, (name, size) in enumerate(zip(("train", "val"), sizes, strict=True)):
        labels = labels_of(size, seed)
        states = torch.stack([pair_states(labels, seed=10 * seed + v, **options) for v in range(len(wordings))])
        splits.append(write_split(folder, name, labels, states, wordings=wordings))
    return splits


def score(folder, probe, split):
    manifest = folder / "rewards.manifest.json"
    score_answers.main(
        [
            *["--probe", str(probe), "--prompts", *map(str, split.prompts), "--states", *map(str, split.states)],
            *["--lineage", str(probe / "manifest.json"), "--rewards", str(folder / "rewards.parquet")],
            *["--manifest", str(manifest)],
        ]
    )
    return read_table(folder / "rewards.parquet").to_pandas(), read_json(manifest)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One full run, with every method."""
    folder = tmp_path_factory.mktemp("whole")
    splits = made(folder)
    methods = ["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"]
    return folder, splits, train(folder, splits, methods=methods)


def test_the_planted_layer_is_found(whole):
    _, _, probe = whole
    facts = read_json(probe / "probe.json")
    assert facts["layer"] == 1
    assert facts["metrics"]["auroc_low"] > 0.95
    assert facts["rows"] == {"fit": 180, "selection": 60, "val": 120}
    assert facts["gate"]["passed"] is True
    assert facts["model"]["hash"] == "abc" and facts["model"]["path"] == "../../models/tiny/checkpoint"
    assert manifests.check_manifest(probe / "manifest.json")["facts"]["layer"] == 1


def test_layers_are_told_for_every_method_and_part_with_intervals(whole):
    layers = pd.read_csv(whole[2] / "layers.csv")
    chance = layers["method"].isin(["random_directions", "shuffled_labels"])
    assert chance.sum() == 2 * 3 and (layers.loc[chance, "auroc"] < 0.8).all()
    layers = layers[~chance]
    assert len(layers) == 6 * 3 * 2
    for metric in ("accuracy", "auroc", "ece"):
        assert (layers[f"{metric}_low"] <= layers[metric] + 0.05).all()
        assert (layers[metric] <= layers[f"{metric}_high"] + 0.05).all()
    best = layers[(layers["part"] == "val") & (layers["layer"] == 1)]
    assert (best["auroc"] > 0.95).all()


def test_controls_stand_beside_the_probe(whole):
    controls = pd.read_csv(whole[2] / "controls.csv").set_index("control")
    expected = ["majority", "word_overlap", "bag_of_words", "zero_shot", "random_directions", "shuffled_labels"]
    assert list(controls.index) == expected
    assert controls.loc["majority", "auroc"] == 0.5
    assert (controls["auroc"] < 0.85).all()
    assert (controls["lead_low"] > 0.05).all() and controls["passed"].all()


def test_each_method_is_told_at_its_own_layer(whole):
    methods = pd.read_csv(whole[2] / "methods.csv").set_index("method")
    assert (methods["layer"] == 1).all()
    assert methods.loc["ccs", "sign"] == "by labels of the fit part"
    assert methods.loc["logistic", "sign"] == "by the labels it was fitted on"


def test_scores_are_those_of_the_stored_formula(whole):
    """probe.safetensors alone, by the formula of its docstring, gives the log-odds the report was made from."""
    _, (_, val), folder = whole
    numbers, states = load_file(folder / "probe.safetensors"), load_file(val.states[0])["layers.1"]
    normal = (states - numbers["mean"][0]) / numbers["scale"][0]
    odds = (normal[:, 1] - normal[:, 0]) @ numbers["weight"] + numbers["bias"]
    table = read_table(folder / "scores.parquet").to_pandas()
    assert odds.numpy() == pytest.approx(table["log_odds"].to_numpy(), abs=1e-4)
    assert table["label"].tolist() == val.labels.tolist()


def test_rewards_are_probabilities_of_each_answer(whole):
    folder, (_, val), probe = whole
    table, manifest = score(folder, probe, val)
    rewards = np.stack(table["rewards"])
    assert rewards.sum(1) == pytest.approx(np.ones(120))
    odds = read_table(probe / "scores.parquet")["log_odds"].to_numpy()
    assert rewards[:, 1] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-5)
    ceiling = manifest["facts"]["gold_ceiling"]
    assert ceiling["value"] == pytest.approx((rewards.argmax(1) == val.labels).mean())
    assert 0.9 < ceiling["low"] <= ceiling["value"] <= ceiling["high"] <= 1
    assert table["id"].tolist() == [f"val-{row}" for row in range(120)]


def test_the_same_seed_gives_the_same_files(whole, tmp_path):
    _, splits, probe = whole
    again = train(tmp_path, splits, methods=["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"])
    for name in ("probe.safetensors", "probe.json", "layers.csv", "controls.csv"):
        assert (again / name).read_bytes() == (probe / name).read_bytes()


def test_a_probe_that_knows_nothing_is_not_admitted(tmp_path):
    splits = made(tmp_path, truth=0.0)
    with pytest.raises(UserError, match=r"does not lead .*majority.* by 0\.05 AUROC(.|\n)*majority +0\.500.*NO"):
        train(tmp_path, splits)
    assert not (tmp_path / "probe").exists()
    facts = read_json(train(tmp_path, splits, allow_weak_probe=True) / "probe.json")
    assert facts["gate"] == {"passed": False, "margin": 0.05, "allowed_anyway": True}


def test_the_gate_asks_for_the_lower_end_of_the_interval():
    """A lead of more than the margin on few rows is not enough; the same lead on many is."""
    settings = ProbeSettings(**BASE, gate={"margin": 0.05})
    passed = {}
    for rows in (24, 2400):
        labels = np.arange(rows) % 2
        rng = np.random.default_rng(0)
        control, probe = (shift * labels + rng.normal(size=rows) for shift in (0.7, 1.2))
        weights = resamples(rows, 400, 0)
        table = control_table([Control("zero_shot", control[None], "")], probe, labels, weights, settings)
        row = table.iloc[0]
        assert row["lead"] > 0.05 and row["passed"] == (row["lead_low"] >= 0.05)
        passed[rows] = bool(row["passed"])
    assert passed == {24: False, 2400: True}


def test_only_named_controls_close_the_gate(tmp_path):
    splits = made(tmp_path, truth=0.35)
    with pytest.raises(UserError, match=r"random_directions|shuffled_labels"):
        train(tmp_path, splits, gate={"margin": 0.45})
    facts = read_json(train(tmp_path, splits, gate={"margin": 0.0, "against": ["majority"]}) / "probe.json")
    assert facts["gate"]["passed"] is True


def test_val_labels_change_no_choice_and_no_weight(tmp_path):
    """Layer, method and weights come from train alone."""
    splits = made(tmp_path)
    first = train(tmp_path, splits, allow_weak_probe=True)
    weights = (first / "probe.safetensors").read_bytes()
    table = read_table(splits[1].prompts[0]).to_pandas()
    table["label"] = 1 - table["label"]
    table.to_parquet(splits[1].prompts[0])
    second = train(tmp_path, splits, allow_weak_probe=True)
    assert (second / "probe.safetensors").read_bytes() == weights
    assert read_json(second / "probe.json")["metrics"]["auroc"] < 0.05


def test_selection_labels_change_no_weight(tmp_path):
    """Only the fit part's labels reach the directions."""
    splits = made(tmp_path)
    first = train(tmp_path, splits, layers=[1], methods=["logistic"], refit=False)
    weights = (first / "probe.safetensors").read_bytes()
    table = read_table(splits[0].prompts[0]).to_pandas()
    _, selection = split_groups(table["group"].to_numpy(), 0.25, 0)
    table.loc[selection, "label"] = 1 - table.loc[selection, "label"]
    table.to_parquet(splits[0].prompts[0])
    second = train(tmp_path, splits, layers=[1], methods=["logistic"], refit=False, allow_weak_probe=True)
    assert (second / "probe.safetensors").read_bytes() == weights


def test_the_chosen_layer_is_fitted_again_on_all_of_train(tmp_path):
    """Half as much again to learn from; the layer and the figures it was chosen by stay as they were."""
    splits = made(tmp_path, sizes=(120, 400), truth=0.5, width=32)
    options = {"methods": ["lda"], "selection": 0.5, "allow_weak_probe": True}
    first, second = (
        read_json(train(tmp_path, splits, refit=again, **options) / "probe.json") for again in (False, True)
    )
    assert first["layer"] == second["layer"]
    assert first["selection_metrics"] == second["selection_metrics"]
    assert second["metrics"]["auroc"] > first["metrics"]["auroc"] + 0.01
    assert (first["fitted_on"], second["fitted_on"]) == ("fit part of train", "all of train")


def test_the_models_own_answers_can_give_the_sign(tmp_path):
    """A model that answers the wrong way round turns an unsupervised probe the wrong way round, labels or not."""
    found = {}
    for name, direction in (("right", 1.0), ("wrong", -1.0)):
        folder = tmp_path / name
        splits = []
        for seed, split in enumerate(("train", "val")):
            labels = labels_of(120, seed)
            odds = direction * (2 * labels - 1.0)
            splits.append(write_split(folder, split, labels, pair_states(labels, seed=seed), zero_shot=odds))
        probe = train(folder, splits, methods=["ccs"], layers=[1], sign="model", allow_weak_probe=True)
        found[name] = read_json(probe / "probe.json")
    assert found["right"]["metrics"]["auroc"] > 0.95
    assert found["wrong"]["metrics"]["auroc"] < 0.05
    assert found["right"]["sign"] == "by the model's own zero-shot answers"


@pytest.mark.parametrize("ensembling", ["none", "partial", "full"])
def test_wordings_are_fitted_together(tmp_path, ensembling):
    splits = made(tmp_path, wordings=("plain", "other"), truth=0.6)
    options = {"variants": ["other"], "methods": ["logistic", "vinc"], "allow_weak_probe": True}
    probe = train(tmp_path, splits, ensembling=ensembling, **options)
    numbers, facts = load_file(probe / "probe.safetensors"), read_json(probe / "probe.json")
    assert numbers["mean"].shape == (2, 2, 16)
    assert not torch.equal(numbers["mean"][0], numbers["mean"][1])
    assert facts["wordings"] == ["plain", "other"]
    assert pd.read_csv(probe / "wordings.csv")["wording"].tolist() == ["plain", "other"]
    loaded = saved_probe.load_probe(probe)
    assert loaded.wordings == (["plain", "other"] if ensembling == "full" else ["plain"])
    read = len(loaded.wordings)
    pairs = ContrastPairs.read(splits[1].prompts[:read], splits[1].states[:read])
    odds = loaded.log_odds(pairs.states([facts["layer"]])[0])
    assert odds.numpy() == pytest.approx(read_table(probe / "scores.parquet")["log_odds"].to_numpy(), abs=1e-4)


def test_averaging_wordings_judges_better_than_one(tmp_path):
    splits = made(tmp_path, wordings=("a", "b", "c"), truth=0.4, sizes=(240, 400))
    options = {"wording": "a", "variants": ["b", "c"], "methods": ["logistic"], "allow_weak_probe": True}
    aurocs = {
        kind: read_json(train(tmp_path, splits, ensembling=kind, **options) / "probe.json")["metrics"]["auroc"]
        for kind in ("none", "partial", "full")
    }
    assert aurocs["none"] < aurocs["partial"] < aurocs["full"]


def test_calibration_shrinks_overconfident_rewards(tmp_path):
    splits = made(tmp_path, truth=0.3, noise=1.5, sizes=(120, 400), width=48)
    options = {"methods": ["logistic"], "logistic": {"l2": [0.001]}, "allow_weak_probe": True, "selection": 0.4}
    ece = {}
    for calibrate in (False, True):
        probe = train(tmp_path, splits, calibrate=calibrate, **options)
        table = read_table(probe / "scores.parquet").to_pandas()
        probability = 1 / (1 + np.exp(-table["log_odds"]))
        ece[calibrate] = ((probability - table["label"]) ** 2).mean()
        slope = read_json(probe / "probe.json")["calibration"]
        assert (slope is None) == (not calibrate)
    assert ece[True] < ece[False]


def test_an_untrained_models_states_are_a_control(tmp_path):
    """Here they know as much as the trained model's, so the probe leads by nothing and is refused."""
    splits = made(tmp_path / "trained")
    twins = made(tmp_path / "fresh")
    paths = {
        "untrained_prompts": [split.prompts[0] for split in twins],
        "untrained_states": [split.states[0] for split in twins],
    }
    with pytest.raises(UserError, match="does not lead untrained_model by"):
        train(tmp_path, splits, paths, methods=["mass_mean"])
    probe = train(tmp_path, splits, paths, methods=["mass_mean"], allow_weak_probe=True)
    control = pd.read_csv(probe / "controls.csv").set_index("control").loc["untrained_model"]
    assert control["auroc"] > 0.95 and control["lead"] == pytest.approx(0)
    blind = made(tmp_path / "blind", truth=0.0)
    paths = {"untrained_prompts": [s.prompts[0] for s in blind], "untrained_states": [s.states[0] for s in blind]}
    assert train(tmp_path, splits, paths, methods=["mass_mean"]).is_dir()


def test_transfer_tells_a_shared_direction_from_an_own_one(whole, tmp_path):
    """Truth on another axis does not transfer; a shift of all states does no harm under the target's own mean."""
    _, (_, val), probe = whole
    labels = labels_of(120, 9)
    elsewhere = write_split(tmp_path / "elsewhere", "val", labels, pair_states(labels, seed=9).roll(5, dims=-1))
    moved = pair_states(labels, seed=9)
    moved[:, :, 1, 0] += 30
    shifted = write_split(tmp_path / "shifted", "val", labels, moved)
    targets = {"itself": val, "elsewhere": elsewhere, "shifted": shifted}
    transfer_probe.main(
        [
            *["--settings", json.dumps(BASE), "--probe", str(probe), "--names", *targets],
            *["--prompts", *(str(split.prompts[0]) for split in targets.values())],
            *["--states", *(str(split.states[0]) for split in targets.values())],
            *["--lineage", str(probe / "manifest.json")],
            *["--output", str(tmp_path / "transfer.csv"), "--manifest", str(tmp_path / "transfer.manifest.json")],
        ]
    )
    table = pd.read_csv(tmp_path / "transfer.csv").set_index(["tested_on", "statistics"])
    assert table.loc[("itself", "stored"), "auroc"] == read_json(probe / "probe.json")["metrics"]["auroc"]
    assert table.loc[("elsewhere", "own"), "auroc"] < 0.7
    assert table.loc[("shifted", "own"), "accuracy"] > 0.9
    assert table.loc[("shifted", "stored"), "accuracy"] < 0.6
    manifests.check_manifest(tmp_path / "transfer.manifest.json")
    with (tmp_path / "transfer.csv").open("a") as file:
        file.write("itself,own,1\n")
    with pytest.raises(UserError, match=r"transfer\.csv: damaged"):
        manifests.check_manifest(tmp_path / "transfer.manifest.json")


# --- files that do not fit ---


def test_a_state_that_is_not_a_number_is_named(tmp_path):
    splits = made(tmp_path)
    tensors = load_file(splits[0].states[0])
    tensors["layers.2"][7, 1, 3] = float("nan")
    save_file(tensors, splits[0].states[0], {"model": "abc"})
    with pytest.raises(UserError, match=r"train\.safetensors: layers\.2, row 7 \(train-7\), answer 1 has NaN"):
        train(tmp_path, splits)


def edited(path: Path, change) -> None:
    table = read_table(path).to_pandas()
    change(table).to_parquet(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(label=1), r"every label is 1; a probe needs both"),
        (lambda t: t.assign(label=t["label"] + 1), r"row \d+ \(train-\d+\) has label 2; 0 or 1 expected"),
        (lambda t: t.assign(answers=[["a", "b", "c"]] * len(t)), r"row 0 \(train-0\) has 3 answers"),
        (lambda t: t.drop(columns="group"), r"column 'group' is missing"),
        (lambda t: t.head(100), r"has 240 rows, its prompts have 100"),
        (lambda t: t.assign(group="one"), r"all train rows are in one group \('one'\)"),
        (lambda t: t.assign(id=t["id"].str.replace("train", "val")), r"train and val share 120 questions"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, change, message):
    splits = made(tmp_path)
    edited(splits[0].prompts[0], change)
    with pytest.raises(UserError, match=message):
        train(tmp_path, splits)


def test_a_layer_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no layer 9; the model has 0 to 2"):
        train(tmp_path, made(tmp_path), layers=[1, 9])


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_states_are_named(tmp_path, content):
    splits = made(tmp_path)
    if content is None:
        splits[1].states[0].unlink()
    else:
        splits[1].states[0].write_bytes(content)
    with pytest.raises(UserError, match=r"val\.safetensors: (not a readable|no such file)"):
        train(tmp_path, splits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "states of another model"),
        ({"position": "mean"}, "position is 'mean', the probe's 'last'"),
        ({"layers": "counted otherwise"}, "layer convention is 'counted otherwise'"),
    ],
)
def test_states_the_probe_was_not_made_for_are_refused(whole, tmp_path, change, message):
    labels = labels_of(20)
    split = write_split(tmp_path, "ppo", labels, pair_states(labels), metadata=change)
    with pytest.raises(UserError, match=message):
        score(tmp_path, whole[2], split)


def test_other_answers_are_refused(whole, tmp_path):
    labels = labels_of(20)
    split = write_split(tmp_path, "ppo", labels, pair_states(labels))
    edited(split.prompts[0], lambda t: t.assign(answers=[["no", "yes"]] * len(t)))
    with pytest.raises(UserError, match=r"answers are \['no', 'yes'\], the probe was fitted on \['No', 'Yes'\]"):
        score(tmp_path, whole[2], split)


def asked_with(split, folder, template, chat=True):
    """The split's prompts in a folder named as rendering names it, with the manifest that it leaves there."""
    file = folder / "made_up" / "plain" / "ppo.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(split.prompts[0].read_bytes())
    settings = {
        "prompts": {"wording": {"template": template, "about": None, "chat": None}},
        "chat": {"chat": chat, "system_prompt": ""},
    }
    manifests.write_manifest(file.with_name("manifest.json"), outputs={"ppo": file}, inputs={}, settings=settings)
    return dataclasses.replace(split, prompts=[file])


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        ("qnli_held_out", True, "template is .*, but .* was fitted on"),
        ("qnli_training", False, "wrapped is False, but .* was fitted on True"),
    ],
)
def test_prompts_of_another_template_are_refused(tmp_path, template, chat, message):
    splits = made(tmp_path)
    probe = train(
        tmp_path,
        (asked_with(splits[0], tmp_path / "train", "qnli_training"), splits[1]),
        methods=["mass_mean"],
    )
    split = write_split(tmp_path / "ppo", "ppo", labels_of(20), pair_states(labels_of(20)))
    score(tmp_path, probe, asked_with(split, tmp_path / "same", "qnli_training"))
    with pytest.raises(UserError, match=message):
        score(tmp_path, probe, asked_with(split, tmp_path / "other", template, chat))


# --- questions about answers ---


def about_answers(folder, drop=()):
    """24 questions, each with a row about each of two answers; the pair's positive member says it is truthful."""
    gold = labels_of(24)
    labels = np.stack([gold == 0, gold == 1], -1).astype(int).reshape(-1)
    split = write_split(folder, "ppo", labels, pair_states(labels, seed=5))
    question = [f"q{row // 2}" for row in range(48)]
    edited(split.prompts[0], lambda t: t.assign(question_id=question, answer_index=np.arange(48) % 2))
    if drop:
        keep = [row for row in range(48) if row not in drop]
        edited(split.prompts[0], lambda t: t.iloc[keep])
        tensors = {name: values[keep].contiguous() for name, values in load_file(split.states[0]).items()}
        metadata = {"layers": CONVENTION, "position": "last", "model": "abc"}
        save_file(tensors, split.states[0], metadata)
    return split, gold


def test_rows_about_answers_become_rewards_of_questions(whole, tmp_path):
    split, gold = about_answers(tmp_path)
    table, manifest = score(tmp_path, whole[2], split)
    assert table["id"].tolist() == [f"q{row}" for row in range(24)]
    assert table["label"].tolist() == gold.tolist()
    rewards = np.stack(table["rewards"])
    assert (rewards.argmax(1) == gold).mean() > 0.9
    assert not np.allclose(rewards.sum(1), 1)
    assert manifest["facts"]["rows"] == 24


def test_a_question_without_all_its_answers_is_named(whole, tmp_path):
    split, _ = about_answers(tmp_path, drop=(5,))
    with pytest.raises(UserError, match="question q2 has no row about its answer 1; rewards need a wording with"):
        score(tmp_path, whole[2], split)


# --- the stored folder ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, but this version reads format 1"),
        ({"layer": None}, "'layer' is missing"),
        ({"wordings": ["plain", "other"]}, "shapes do not match each other"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(whole, tmp_path, change, message):
    facts = read_json(whole[2] / "probe.json") | change
    facts = {key: value for key, value in facts.items() if value is not None or key == "calibration"}
    (tmp_path / "probe.json").write_text(json.dumps(facts))
    (tmp_path / "probe.safetensors").write_bytes((whole[2] / "probe.safetensors").read_bytes())
    with pytest.raises(UserError, match=message):
        saved_probe.load_probe(tmp_path)


def test_a_damaged_probe_is_named(whole, tmp_path):
    (tmp_path / "probe.json").write_bytes((whole[2] / "probe.json").read_bytes())
    with pytest.raises(UserError, match=r"probe\.safetensors: no such file"):
        saved_probe.load_probe(tmp_path)
    (tmp_path / "probe.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(UserError, match=r"probe\.safetensors: not a readable probe"):
        saved_probe.load_probe(tmp_path)
    numbers = load_file(whole[2] / "probe.safetensors")
    numbers["bias"] = torch.tensor(float("inf"))
    save_file(numbers, tmp_path / "probe.safetensors")
    with pytest.raises(UserError, match="has values that are not finite"):
        saved_probe.load_probe(tmp_path)


# --- settings and splitting ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "vinc"}, "reward: 'vinc' is not among methods"),
        ({"methods": ["ccs", "ccs"]}, "'ccs' is listed twice"),
        ({"variants": ["plain"]}, "variants: 'plain' is already the wording"),
        ({"layers": [1, 1]}, "layers: give at least one, each once"),
        ({"selection": 1.0}, "selection"),
        ({"logistic": {"l2": [0.0]}}, "l2"),
        ({"gate": {"margins": 0.1}}, "margins"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**(BASE | change))


def test_selection_takes_whole_groups():
    groups = np.array([f"g{row // 5}" for row in range(100)])
    fit, selection = split_groups(groups, 0.25, 3)
    assert not set(groups[fit]) & set(groups[selection])
    assert len(selection) == 25 and sorted([*fit, *selection]) == list(range(100))
    assert not np.array_equal(selection, split_groups(groups, 0.25, 4)[1])


def test_folds_keep_groups_together():
    groups = np.array([f"g{row // 5}" for row in range(100)])
    folds = assign_folds(groups, 4, 0)
    assert set(folds) == {0, 1, 2, 3}
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert set(assign_folds(np.array(["a", "b"] * 3), 4, 0)) == {0, 1}
