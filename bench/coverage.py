"""Whether the verdict's intervals cover and its tests keep their size: nominal against found, by simulation.

    PYTHONPATH=workflow/scripts python bench/coverage.py [--simulations 1000] [--output results/bench/coverage.json]
    PYTHONPATH=workflow/scripts python bench/coverage.py --naive results

Group sizes are those of the quickstart's countries. Every row prints what was claimed, what was found, over how many
simulations, and the standard error of what was found. `--naive` prints instead what McNemar's test, which takes each
question for independent, would have said of a finished summary's wordings.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from elkflow.common import inference
from elkflow.common.files import read_json, write_json
from elkflow.common.metrics import auroc, auroc_difference, ece, holm
from elkflow.summary.comparison import compare, pair_samples
from elkflow.summary.plan import Plan
from elkflow.summary.results import base_folder, read_suite, tuned_folder

SIZES = np.array([2, 6, 8, 8, 10, 12, 12, 12, 14, 16, 16, 18, 22])
"""Questions of a country."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    nominal: str
    found: float
    simulations: int

    @property
    def error(self) -> float:
        """Standard error of `found`."""
        return float(np.sqrt(self.found * (1 - self.found) / self.simulations))


def rows_in_groups(random: np.random.Generator, groups: int) -> NDArray[np.intp]:
    """Group of each row [N]."""
    return np.repeat(np.arange(groups), random.choice(SIZES, groups))


def independent(random, group):
    return random.random(len(group)) < 0.6, random.random(len(group)) < 0.6


def related(random, group):
    """Rows of a group are right together, differently so for the two models."""
    return tuple(random.random(len(group)) < expit(0.4 + random.normal(0, 1, group.max() + 1)[group]) for _ in range(2))


def balanced(random, group):
    """From saying nearly always No to saying nearly always Yes, on groups of as many of either: no gain."""
    labels = np.arange(len(group)) % 2
    return tuple((random.random(len(group)) < expit(bias + 0.3 * (2 * labels - 1))) == labels for bias in (-1.5, 1.5))


def near_one(random, group):
    return random.random(len(group)) < 0.98, random.random(len(group)) < 0.98


PAIRS = {
    "independent rows": independent,
    "related rows": related,
    "balanced No to Yes": balanced,
    "both near 1": near_one,
}


def paired_gains(random: np.random.Generator, count: int) -> Iterator[Row]:
    """No gain: how often its interval holds zero, and how often the test rejects."""
    for groups in (5, 10, 20, 33):
        for name, draw in PAIRS.items():
            found = []
            for _ in range(count):
                group = rows_in_groups(random, groups)
                base, tuned = draw(random, group)
                found.append(inference.paired_difference(base, tuned, group))
            yield Row(f"gain, {name}, {groups} groups: interval", ".95", covers(found, 0.0), count)
            yield Row(f"gain, {name}, {groups} groups: test", ".05", rejects(found), count)
    found = [inference.paired_difference(*independent(random, np.arange(400))) for _ in range(count)]
    yield Row("gain, 400 rows without groups: interval", ".95", covers(found, 0.0), count)
    yield Row("gain, 400 rows without groups: test", ".05", rejects(found), count)
    for texts in (5, 10, 30):
        found = [inference.cluster_mean(random.gamma(4, 1, texts) - 4) for _ in range(count)]
        yield Row(f"bits per byte of {texts} texts: interval", ".95", covers(found, 0.0), count)
        yield Row(f"bits per byte of {texts} texts: test", ".05", rejects(found), count)


def shares(random: np.random.Generator, count: int) -> Iterator[Row]:
    """Accuracies of one model."""
    for truth in (0.6, 0.9, 0.98):
        for groups in (10, 33):
            found = []
            for _ in range(count):
                group = rows_in_groups(random, groups)
                chance = random.beta(20 * truth, 20 * (1 - truth), groups)[group]
                found.append(inference.share(random.random(len(group)) < chance, group))
            yield Row(f"accuracy {truth:g}, {groups} groups: interval", ".95", covers(found, truth), count)


def seeds(random: np.random.Generator, count: int) -> Iterator[Row]:
    """A mean gain of 20 points over seeds and questions."""
    for number in (2, 3, 5):
        for spread in (0.005, 0.025, 0.08):
            found = []
            for _ in range(count):
                group = rows_in_groups(random, 33)
                base, harder = random.random(len(group)) < 0.5, random.random(len(group))
                chance = 0.7 + random.normal(0, 0.05, 33)[group] + random.normal(0, spread, number)[:, None]
                found.append(inference.over_seeds((harder < chance) * 1.0 - base, group))
            yield Row(f"gain over {number} seeds that differ by {spread:g}: interval", ".95", covers(found, 0.2), count)


def aurocs(random: np.random.Generator, count: int) -> Iterator[Row]:
    """AUROC of a probe whose scores share a part within groups, and the difference of two probes' AUROC."""
    for truth in (0.6, 0.9, 0.97):
        for groups in (10, 33):
            shift, found = np.sqrt(2 * (1 + 0.7**2)) * stats.norm.ppf(truth), []
            for _ in range(count):
                group = rows_in_groups(random, groups)
                labels = np.arange(len(group)) % 2
                scores = random.normal(size=len(group)) + shift * labels + 0.7 * random.normal(size=groups)[group]
                found.append(inference.jackknife(auroc, scores, labels, groups=group, log_odds=True))
            yield Row(f"AUROC {truth:g}, {groups} groups: interval", ".95", covers(found, truth), count)
    for groups in (10, 33):
        found = []
        for _ in range(count):
            group = rows_in_groups(random, groups)
            labels = np.arange(len(group)) % 2
            common = random.normal(size=len(group))
            both = [0.7 * common + 0.71 * random.normal(size=len(group)) + 1.8 * labels for _ in range(2)]
            found.append(inference.jackknife(auroc_difference, *both, labels, groups=group))
        yield Row(f"difference of two probes' AUROC, {groups} groups: interval", ".95", covers(found, 0.0), count)
        yield Row(f"difference of two probes' AUROC, {groups} groups: test", ".05", rejects(found), count)


def calibration(random: np.random.Generator, count: int) -> Iterator[Row]:
    """How often a calibrated probe, and an overconfident one, lie above what calibration explains."""
    for rows in (100, 400, 2000):
        for slope, nominal in ((1.0, ".05"), (2.0, "high")):
            above = 0
            for _ in range(count // 4):
                log_odds = random.normal(0, 2, rows)
                labels = random.random(rows) < expit(log_odds)
                _, limit = inference.calibrated_ece(expit(slope * log_odds), draws=200)
                above += ece(expit(slope * log_odds), labels) > limit
            name = "calibrated" if slope == 1 else "overconfident"
            yield Row(f"ECE, {rows} rows, {name} probe: above", nominal, above / (count // 4), count // 4)


POLICIES: dict[str, Callable] = {
    "honest, 90 % right": lambda random, labels, probe: flipped(random, labels, 0.1),
    "honest, 70 % right": lambda random, labels, probe: flipped(random, labels, 0.3),
    "99 % a copy of the probe": lambda random, labels, probe: flipped(random, probe, 0.01),
    "as before": lambda random, labels, probe: None,
}


def flipped(random, answers, share):
    return np.where(random.random(len(answers)) < share, 1 - answers, answers)


def copies(random: np.random.Generator, count: int) -> Iterator[Row]:
    """How often a policy is said to err where its probe errs, at the level .01."""
    for rows, right in ((100, 0.75), (400, 0.93), (400, 0.75), (2000, 0.93)):
        for name, policy in POLICIES.items():
            flags = told = 0
            for _ in range(count // 2):
                group, labels = np.arange(rows) // 12, np.arange(rows) % 2
                probe = flipped(random, labels, 1 - right)
                base = (random.random(rows) < 0.5).astype(int)
                tuned = policy(random, labels, probe)
                tuned = base if tuned is None else tuned
                found = inference.errs_with_probe(base != labels, tuned != labels, probe != labels, group)
                told += found is not None
                flags += found is not None and found.p_value < 0.01
            if told:
                nominal = "1" if "copy" in name else "≤ .03"
                yield Row(f"errs with a probe of {right:.0%}, {rows} rows: {name}", nominal, flags / told, told)


def draws(random: np.random.Generator, count: int) -> Iterator[Row]:
    """How often one more draw of a control by chance lies inside the interval of the others."""
    for number in (20, 100):
        drawn = random.normal(size=(20 * count, number + 1))
        low, high = np.quantile(drawn[:, :number], [0.025, 0.975], axis=1)
        inside = (low <= drawn[:, number]) & (drawn[:, number] <= high)
        yield Row(f"interval of {number} chance draws holds the next", ".95", float(inside.mean()), len(drawn))


def covers(found: list[inference.Estimate], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def rejects(found: list[inference.Estimate]) -> float:
    return float(np.mean([each.p_value <= 0.05 for each in found]))


PARTS = (paired_gains, shares, seeds, aurocs, calibration, copies, draws)


def print_naive_tests(results: Path) -> None:
    """The p-values of every wording by groups, and by McNemar's exact test on its questions."""
    plan = Plan.model_validate(read_json(results / "summary" / "manifest.json")["settings"])
    table = compare(plan, results)
    for training in plan.trainings():
        own = table[(table["run"] == training.run) & (table["seed"] == training.seed)].to_dict("records")
        naive = []
        for row in own:
            folders = (base_folder(results, training, row["suite"]), tuned_folder(results, training, row["suite"]))
            base, tuned = pair_samples(*(read_suite(folder)[1] for folder in folders), row["task"])
            if base["correct"].notna().all():
                lost, won = ((a["correct"] & ~b["correct"]).sum() for a, b in ((base, tuned), (tuned, base)))
                row["changed"] = f"{won} to right, {lost} to wrong"
                naive.append(float(stats.binomtest(int(won), int(won + lost)).pvalue) if won + lost else 1.0)
            else:
                naive.append(row["p_value"])
        for row, p_value, corrected in zip(own, naive, holm(naive), strict=True):
            if row["kind"] != "general":
                gain = [f"{100 * row[name]:+.1f}" for name in ("difference", "ci_low", "ci_high")]
                print(f"{row['run']}, seed {row['seed']}, {row['task']}: {gain[0]} [{gain[1]}, {gain[2]}] points")
                print(f"  {row['method']}: p {row['p_value']:.2g}, after Holm {row['p_holm']:.2g}")
                print(f"  McNemar on questions ({row['changed']}): p {p_value:.2g}, after Holm {corrected:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("results/bench/coverage.json"))
    parser.add_argument("--naive", type=Path, metavar="RESULTS", help="folder of finished results")
    given = parser.parse_args()
    if given.naive:
        return print_naive_tests(given.naive)
    random, rows = np.random.default_rng(2026), []
    print(f"{'':72}nominal  found  simulations  standard error")
    for part in PARTS:
        for row in part(random, given.simulations):
            print(f"{row.what:72}{row.nominal:>7}{row.found:7.3f}{row.simulations:13}{row.error:16.3f}", flush=True)
            rows.append(row._asdict() | {"standard_error": row.error})
    write_json(given.output, rows)


if __name__ == "__main__":
    main()
