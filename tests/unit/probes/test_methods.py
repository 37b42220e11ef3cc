"""Probes on states with a known answer: a planted truth direction, and a stronger distractor."""

import math

import numpy as np
import pytest
import torch
from planted import labels_of, pair_states
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from elkflow.common.metrics import auroc
from elkflow.probes import methods
from elkflow.probes.batched_lbfgs import lbfgs
from elkflow.probes.contrast_pairs import Normalisation

LABELS = labels_of(400)


def normal(states):
    """Positive and negative members [L, N, D], normalised."""
    states = states[:, None]
    states = Normalisation.of(states, "full")(states)[:, 0]
    return states[:, :, 1], states[:, :, 0]


def aurocs(direction, positive, negative, labels=LABELS):
    """AUROC on each layer, of either sign."""
    odds = torch.einsum("lnd,ld->ln", positive - negative, direction.weight) + direction.bias[:, None]
    values = np.array([auroc(layer.numpy(), labels) for layer in odds])
    return np.maximum(values, 1 - values)


def fit(method, positive, negative, labels):
    labels = torch.as_tensor(labels)
    match method:
        case "logistic":
            return methods.logistic_path(positive - negative, labels, [0.01, 0.1, 1.0], torch.arange(len(labels)) % 4)
        case "mass_mean":
            return methods.mass_mean(positive - negative, labels)
        case "lda":
            return methods.lda(positive - negative, labels)
        case "ccs":
            return methods.ccs(positive, negative, restarts=5, l2=0.01, seed=0)
        case "vinc":
            return methods.vinc(positive, negative, 1, variance=0.0, invariance=1.0, negative_covariance=1.0)
        case "crc":
            return methods.crc(positive - negative)


METHODS = ["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_truth_where_it_is_and_only_there(method):
    members = normal(pair_states(LABELS))
    found = aurocs(fit(method, *members, LABELS), *members)
    assert found[1] > 0.97
    assert max(found[0], found[2]) < 0.75


@pytest.mark.parametrize(
    ("method", "knows"),
    [("logistic", True), ("mass_mean", True), ("lda", True), ("ccs", False), ("vinc", False), ("crc", False)],
)
def test_a_stronger_distractor_fools_just_the_unsupervised(method, knows):
    """Farquhar et al. 2023: without labels, nothing tells truth from another feature that contrasts the pair."""
    members = normal(pair_states(LABELS, truth=1.0, distractor=6.0))
    found = aurocs(fit(method, *members, LABELS), *members)[1]
    assert found > 0.9 if knows else found < 0.7


def test_loss_agrees_with_scikit_learn():
    positive, negative = normal(pair_states(LABELS, truth=0.7))
    x = positive - negative
    l2 = [0.003, 0.03, 0.3]
    every = torch.ones(3, len(LABELS))
    weight, bias, value = methods.logistic(x, torch.as_tensor(LABELS), torch.tensor(l2), every)
    for layer in range(3):
        for index, penalty in enumerate(l2):
            model = LogisticRegression(C=1 / (penalty * len(LABELS)), tol=1e-10, max_iter=10_000)
            model.fit(x[layer].numpy(), LABELS)
            odds = model.decision_function(x[layer].numpy())
            loss = np.logaddexp(0, odds) - LABELS * odds
            theirs = loss.mean() + penalty / 2 * (model.coef_**2).sum()
            assert float(value[layer, index]) == pytest.approx(theirs, abs=1e-3)
            assert weight[layer, index].numpy() == pytest.approx(model.coef_[0], abs=0.05)
            assert float(bias[layer, index]) == pytest.approx(model.intercept_[0], abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_layers_do_not_influence_each_other(method):
    positive, negative = normal(pair_states(LABELS))
    together = fit(method, positive, negative, LABELS)
    alone = fit(method, positive[1:2], negative[1:2], LABELS)
    cosine = torch.cosine_similarity(together.weight[1], alone.weight[0], dim=0)
    assert abs(float(cosine)) > 0.999


def test_folds_are_fitted_without_their_own_rows():
    x = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    weights = torch.ones(1, 40)
    weights[0, :20] = 0
    part = methods.logistic(x, labels, torch.tensor([0.1]), weights, tolerance=1e-6)
    alone = methods.logistic(x[:, 20:], labels[20:], torch.tensor([0.1]), torch.ones(1, 20), tolerance=1e-6)
    for a, b in zip(part, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_the_penalty_is_chosen_by_held_out_loss():
    """Pure noise asks for the strongest penalty, a clean signal for a weak one."""
    labels = torch.as_tensor(LABELS)
    noise = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(0))
    signal = noise + 5 * (2 * labels - 1)[None, :, None] * torch.eye(32)[0]
    x = torch.cat([noise, signal])
    found = methods.logistic_path(x, labels, [0.001, 0.1, 10.0], torch.arange(400) % 5)
    assert found.facts["l2"].tolist() == pytest.approx([10.0, 0.001])


def test_the_path_is_that_of_fits_made_one_by_one():
    generator = torch.Generator().manual_seed(0)
    labels, folds, l2 = torch.arange(60) % 2, torch.arange(60) // 2 % 3, [0.01, 1.0]
    x = torch.randn(2, 60, 6, generator=generator)
    x[0] += 2 * (2 * labels - 1)[:, None] * torch.eye(6)[0]  # a signal, and noise: the weak penalty, and the strong one
    losses, fits = torch.zeros(2, len(l2)), []
    for index, penalty in enumerate(torch.tensor(l2)):
        for fold in range(3):
            inside = folds != fold
            weight, bias, _ = methods.logistic(
                x[:, inside], labels[inside], penalty[None], torch.ones(1, 40), tolerance=1e-6
            )
            z = torch.einsum("lnd,ld->ln", x[:, ~inside], weight[:, 0]) + bias
            losses[:, index] += (torch.nn.functional.softplus(z) - labels[~inside] * z).sum(1) / 60
        fits.append(methods.logistic(x, labels, penalty[None], torch.ones(1, 60), tolerance=1e-6))
    found = methods.logistic_path(x, labels, l2, folds, tolerance=1e-6)
    torch.testing.assert_close(found.facts["cross_validated_loss"], losses.min(1).values, atol=1e-4, rtol=0)
    assert losses.argmin(1).tolist() == [0, 1]
    for layer, best in enumerate(losses.argmin(1)):
        weight, bias, value = fits[best]
        torch.testing.assert_close(found.weight[layer], weight[layer, 0], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.bias[layer], bias[layer, 0], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.facts["loss"][layer], value[layer, 0], atol=1e-4, rtol=0)


def test_axes_are_the_rows_own_however_few_rows_there_are():
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((30, 6), (6, 6), (6, 30)):
        x = torch.randn(2, rows, width, generator=generator)
        x[:, -1] = x[:, 0]  # one axis fewer than rows
        axes, squares = methods.principal_axes(x)
        assert axes.shape == (2, width, min(rows, width))
        turned = torch.bmm(x, axes)
        torch.testing.assert_close((turned**2).mean(1), squares, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.bmm(turned, axes.mT), x, atol=1e-4, rtol=0)
        assert (squares.diff(dim=1) >= 0).all()
    assert (axes[:, :, 0] == 0).all()
    assert all((found == 0).all() for found in methods.principal_axes(torch.zeros(1, 4, 9)))
    torch.testing.assert_close(methods.principal_axes(1e-6 * x)[0].abs(), axes.abs(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.bmm(axes.mT, axes)[:, 1:, 1:], torch.eye(5).expand(2, -1, -1), atol=1e-5, rtol=0)


def test_more_features_than_rows():
    """Axes without any spread are not divided by."""
    x = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2
    weight, bias, value = methods.logistic(x, labels, torch.tensor([0.1]), torch.ones(1, 8), tolerance=1e-6)
    model = LogisticRegression(C=1 / (0.1 * 8), tol=1e-10, max_iter=10_000).fit(x[0].numpy(), labels.numpy())
    assert weight[0, 0].numpy() == pytest.approx(model.coef_[0], abs=1e-3)
    assert float(bias[0, 0]) == pytest.approx(model.intercept_[0], abs=1e-3)
    assert torch.isfinite(value).all()


def test_features_that_repeat_share_the_weight():
    """Rounding makes some mean squares of axes without spread negative: none may become a NaN."""
    x = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 5)
    weight, _, value = methods.logistic(x, torch.arange(40) % 2, torch.tensor([0.1]), torch.ones(1, 40))
    assert torch.isfinite(weight).all() and torch.isfinite(value).all()
    assert all((methods.principal_axes(rows)[1] >= 0).all() for rows in (x, x.mT))
    copies = weight[0, 0].unflatten(0, (5, 3))
    torch.testing.assert_close(copies, copies[:1].expand(5, -1), atol=1e-3, rtol=0)


def test_ccs_starts_from_directions_of_length_one_without_a_bias(monkeypatch):
    starts = []

    def kept(problems, start, **_):
        starts.append(start)
        return start, torch.zeros(start.shape[:2])

    monkeypatch.setattr(methods, "lbfgs", kept)
    methods.ccs(*torch.zeros(2, 2, 5, 900), restarts=3, l2=0.1, seed=0)
    assert starts[0].shape == (2, 3, 901)
    assert starts[0].norm(dim=-1).numpy() == pytest.approx(np.ones((2, 3)), abs=0.1)
    assert (starts[0][..., -1] == 0).all()
    assert (starts[0][..., :-1] != 0).all()
    assert torch.equal(starts[0][0], starts[0][1])


def test_ccs_keeps_the_restart_with_the_lowest_loss():
    positive, negative = normal(pair_states(LABELS, truth=1.0, distractor=1.0))
    many = methods.ccs(positive, negative, restarts=8, l2=0.01, seed=3)
    one = methods.ccs(positive, negative, restarts=1, l2=0.01, seed=3)
    assert (many.facts["loss"] <= one.facts["loss"] + 1e-6).all()
    again = methods.ccs(positive, negative, restarts=8, l2=0.01, seed=3)
    assert torch.equal(many.weight, again.weight)


def test_ccs_gradient_is_that_of_its_loss(monkeypatch):
    """What the optimiser is given, against autograd."""
    seen = []

    def watched(problems, start, **_):
        seen.append(problems(torch.arange(2), torch.zeros(2, 3, dtype=torch.long)))
        return start, torch.zeros(start.shape[:2])

    monkeypatch.setattr(methods, "lbfgs", watched)
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 2, 30, 4, generator=generator, dtype=torch.float64)
    methods.ccs(positive, negative, restarts=3, l2=0.1, seed=0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    value, slope = seen[0](x)
    p, q = (torch.sigmoid(x[..., :-1] @ end.mT + x[..., -1:]) for end in (positive, negative))
    loss = ((p + q - 1) ** 2 + torch.minimum(p, q) ** 2).mean(-1) + 0.05 * (x[..., :-1] ** 2).sum(-1)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(slope, torch.autograd.grad(loss.sum(), x)[0])


def test_one_restart_has_no_spread():
    positive, negative = normal(pair_states(LABELS, truth=1.0, distractor=1.0))
    assert (methods.ccs(positive, negative, restarts=1, l2=0.01, seed=3).facts["loss_spread"] == 0).all()
    assert (methods.ccs(positive, negative, restarts=8, l2=0.01, seed=3).facts["loss_spread"] > 0).any()


def test_the_boundary_moves_with_the_classes_shares():
    means, labels = (torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]])), torch.tensor([1, 1, 1, 0])
    found = methods._midpoint(torch.tensor([[1.0, 0.5]]), means, labels)
    assert found.tolist() == pytest.approx([-(2 + 0.5 * 4) / 2 + math.log(3)])
    for only in (torch.zeros(4), torch.ones(4)):
        assert torch.isfinite(methods._midpoint(torch.ones(1, 2), means, only)).all()


def test_components_are_of_centred_rows_and_log_odds_have_unit_deviation():
    generator = torch.Generator().manual_seed(1)
    positive, negative = torch.randn(2, 2, 200, 5, generator=generator) * torch.tensor([3.0, 1, 1, 1, 1])
    positive = positive + torch.tensor([0.0, 20, 0, 0, 0])
    positive, negative = positive / 100, negative / 100
    difference = positive - negative
    for found in (
        methods.crc(difference),
        methods.vinc(positive, negative, 1, variance=1.0, invariance=0.0, negative_covariance=0.0),
    ):
        assert (found.weight.abs().argmax(1) == 0).all()  # the widest, not the one that is moved
        odds = torch.einsum("lnd,ld->ln", difference, found.weight) + found.bias[:, None]
        torch.testing.assert_close(odds.std(1, correction=0), torch.ones(2))
        torch.testing.assert_close(odds.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    assert torch.isfinite(methods.crc(torch.ones(1, 5, 3)).weight).all()  # nothing varies


def test_a_turned_direction_keeps_its_boundary():
    difference = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    direction = methods.Direction(torch.tensor([[-1.0]]), torch.tensor([2.5]), {})
    turned = methods.oriented(direction, difference, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (turned.weight.item(), turned.bias.item(), turned.facts["turned"].item()) == (1.0, -2.5, True)
    upright = methods.Direction(torch.tensor([[1.0]]), torch.tensor([-2.5]), {})
    assert methods.oriented(upright, difference, torch.tensor([6.0, 6.0, 5.0, 5.0])).facts["turned"].item()
    assert methods.oriented(upright, 0.01 * difference, torch.tensor([6.0, 6.0, 5.0, 5.0])).facts["turned"].item()
    unrelated = methods.oriented(upright, difference, torch.full((4,), 3.0))
    assert (unrelated.weight.item(), unrelated.facts["turned"].item()) == (1.0, False)
    lifted = methods.oriented(direction, difference - 2.5, torch.tensor([5.0, 5.0, 6.0, 6.0]))
    assert lifted.facts["turned"].item()


def test_shrinkage_is_ledoit_and_wolfs():
    x = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.linspace(0.5, 2, 20)
    x = x - x.mean(1, keepdim=True)
    covariance, amount = methods.ledoit_wolf(x)
    for layer in range(2):
        theirs, shrinkage = ledoit_wolf(x[layer].numpy(), assume_centered=True)
        assert covariance[layer].numpy() == pytest.approx(theirs)
        assert float(amount[layer]) == pytest.approx(shrinkage)


def test_shrinkage_is_between_none_and_all():
    x = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 5)
    amounts = [float(methods.ledoit_wolf(scale * x)[1]) for scale in (1.0, 0.01)]
    assert amounts[0] == pytest.approx(amounts[1], rel=1e-3) and 0 < amounts[0] < 1
    round_ = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [0, -1]]])  # already a multiple of the identity
    assert float(methods.ledoit_wolf(round_)[1]) == 1
    assert float(methods.ledoit_wolf(torch.tensor([[[1.0], [-1.0]]]))[1]) == 0  # nothing to shrink, and no noise


def test_lda_log_odds_are_those_of_two_gaussians():
    rng = np.random.default_rng(0)
    labels = torch.as_tensor(rng.integers(0, 2, 20_000))
    x = torch.as_tensor(rng.normal(size=(1, 20_000, 3)))
    x[0, :, 0] = 2 * x[0, :, 0] + 3 * labels  # means 0 and 3, deviation 2: log-odds 3/4 x − 9/8
    for method in (methods.lda, methods.mass_mean):
        found = method(x, labels)
        assert float(found.weight[0, 0]) == pytest.approx(0.75, abs=0.05)
        assert float(found.bias[0]) == pytest.approx(-1.125, abs=0.05)


def test_mean_differences_do_not_hang_on_scale_or_spread():
    labels = torch.arange(40) % 2
    x = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    odds = [torch.einsum("lnd,ld->ln", s * x, methods.mass_mean(s * x, labels).weight) for s in (1.0, 0.01)]
    torch.testing.assert_close(*odds, atol=1e-3, rtol=1e-3)
    for method in (methods.mass_mean, methods.lda):
        still = method(labels[None, :, None].float(), labels)  # classes without any spread
        assert 0 < float(still.weight[0, 0]) < math.inf


def test_vinc_with_equal_variance_and_covariance_is_crc():
    """Σ − C of a pair's members is half the covariance of their difference."""
    positive, negative = normal(pair_states(LABELS))
    vinc = methods.vinc(positive, negative, 1, variance=1.0, invariance=0.0, negative_covariance=1.0)
    crc = methods.crc(positive - negative)
    assert torch.cosine_similarity(vinc.weight, crc.weight).abs() == pytest.approx(np.ones(3), abs=1e-4)


def test_vinc_is_the_eigenvector_of_its_three_terms():
    states = np.random.default_rng(0).normal(size=(2, 2, 50, 4)) * [3, 2, 1, 0.5]  # member, wording, question
    centres = states.mean(1) - states.mean((1, 2))[:, None]
    within = states - states.mean(1, keepdims=True)
    between = sum(centre.T @ centre for centre in centres) / 2 / 50
    spread = sum(rows.reshape(-1, 4).T @ rows.reshape(-1, 4) for rows in within) / 2 / 100
    cross = centres[0].T @ centres[1] / 50
    for variance, invariance, covariance in ((1.0, 0.7, 0.3), (0.5, 0.1, 2.0), (0.0, 2.0, 0.5)):
        matrix = variance * between - invariance * spread - covariance * (cross + cross.T) / 2
        expected = np.linalg.eigh(matrix)[1][:, -1]
        positive, negative = (torch.as_tensor(member).flatten(0, 1)[None] for member in states)
        weights = {"variance": variance, "invariance": invariance, "negative_covariance": covariance}
        found = methods.vinc(positive, negative, 2, **weights).weight[0].numpy()
        assert abs(found @ expected) / np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_vinc_avoids_what_changes_with_the_wording():
    states = pair_states(LABELS, truth=1.5)
    variants = torch.stack([states, states.clone()])
    coin = torch.as_tensor(np.random.default_rng(0).choice([-1.0, 1.0], len(LABELS)), dtype=torch.float32)
    for wording, sign in enumerate((1, -1)):  # a strong contrast that the second wording turns around
        variants[wording, :, :, 1, 2] += sign * 4 * coin
        variants[wording, :, :, 0, 2] -= sign * 4 * coin
    norm = Normalisation.of(variants.transpose(0, 1), "full")
    members = norm(variants.transpose(0, 1)).flatten(1, 2)
    negative, positive = members[:, :, 0], members[:, :, 1]
    twice = np.tile(LABELS, 2)
    with_invariance = methods.vinc(positive, negative, 2, variance=0.0, invariance=1.0, negative_covariance=1.0)
    assert aurocs(with_invariance, positive, negative, twice)[1] > 0.9
    assert aurocs(methods.crc(positive - negative), positive, negative, twice)[1] < 0.7


def test_a_turned_direction_agrees_with_its_reference():
    positive, negative = normal(pair_states(LABELS))
    direction = methods.crc(positive - negative)
    reference = torch.as_tensor(2.0 * LABELS - 1)
    for turned in (direction, methods.Direction(-direction.weight, -direction.bias, {})):
        found = methods.oriented(turned, positive - negative, reference)
        odds = torch.einsum("lnd,ld->ln", positive - negative, found.weight)
        assert (odds @ reference.float() > 0).all()


def test_lbfgs_finds_the_bottom_of_many_valleys():
    """Quadratics of different curvature and Rosenbrock's function, side by side; the easy ones drop out."""
    curvature = torch.tensor([[[1.0, 1.0], [1.0, 100.0]], [[0.1, 10.0], [torch.nan, torch.nan]]])
    sizes = []

    def problems(layers, which):
        def objective(x):
            sizes.append(x.shape[:2].numel())
            a, b = x[..., 0], x[..., 1]
            narrow = curvature[layers[:, None], which]
            rosenbrock = (1 - a) ** 2 + 100 * (b - a**2) ** 2
            slope = torch.stack([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)], -1)
            hard = narrow.isnan()
            value = torch.where(hard[..., 0], rosenbrock, (narrow * (x - 1) ** 2).sum(-1) / 2)
            return value, torch.where(hard, slope, narrow * (x - 1))

        return objective

    x, value = lbfgs(problems, torch.full((2, 2, 2), -1.0), tolerance=1e-4)
    assert torch.allclose(x, torch.ones(2, 2, 2), atol=5e-3)
    assert (value < 1e-5).all()
    assert sizes[0] == 4 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_slow_problems_do_not_touch_those_that_are_done():
    """Penalties that converge at different times, on layers that do, give what each gives by itself."""
    positive, negative = normal(pair_states(LABELS, truth=0.7))
    x, labels, every = positive - negative, torch.as_tensor(LABELS), torch.ones(1, len(LABELS))
    l2 = torch.tensor([1e-4, 10.0, 1e-2])
    together = methods.logistic(x, labels, l2, every.expand(3, -1), tolerance=1e-5)
    for layer in range(3):
        for index, penalty in enumerate(l2):
            alone = methods.logistic(x[layer : layer + 1], labels, penalty[None], every, tolerance=1e-5)
            for mine, other in zip(together, alone, strict=True):
                torch.testing.assert_close(mine[layer, index], other[0, 0], atol=1e-3, rtol=1e-3)


def test_statistics_of_constant_features_do_not_blow_up():
    states = torch.full((1, 1, 10, 2, 3), 700.0) + 1e-3 * torch.randn(1, 1, 10, 2, 3)
    assert Normalisation.of(states, "full")(states).abs().max() < 1
