"""Certificates: what they contain, what they say and when they refuse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import wprox

D = 2
TARGET = wprox.Gaussian(torch.zeros(D).double(), torch.eye(D).double())
START = wprox.Gaussian(torch.tensor([3.0, -1.0]).double(), torch.diag(torch.tensor([0.04, 4.0])).double())


LINE_TARGET = wprox.Gaussian(torch.zeros(1).double(), torch.eye(1).double())


def normal_quantiles(loc, scale, n):
    normal = torch.distributions.Normal(torch.tensor(loc).double(), torch.tensor(scale).double())
    return wprox.Quantiles.from_icdf(normal.icdf, n)


@pytest.fixture
def trajectory():
    return wprox.jko(wprox.KL(TARGET), wprox.GaussianProx(), START, step_size=[1.0, 0.5, 2.0, 1.0], n_steps=4)


def test_contents(trajectory):
    certificate = wprox.certify(trajectory, wprox.KL(TARGET))
    assert certificate.modulus == 1
    assert certificate.step_sizes == [1.0, 0.5, 2.0, 1.0]
    assert certificate.residuals == [step.residual for step in trajectory.steps]
    assert certificate.initial_w2.kind == "exact"
    w2 = float(wprox.metrics.bures_wasserstein(START, TARGET))
    assert certificate.initial_w2.value == pytest.approx(w2)
    assert certificate.w2 == wprox.theory.w2_bound(w2, certificate.step_sizes, certificate.residuals, 1.0)
    assert certificate.objective == wprox.theory.objective_bound(w2, certificate.step_sizes, certificate.residuals, 1.0)
    assert certificate.kl == certificate.objective[-1]  # G* = 0 for KL to a normalised target
    assert certificate.tv == wprox.theory.pinsker(certificate.kl)
    assert certificate.measured_objective == pytest.approx([float(value) for value in trajectory.values[1:]])
    assert certificate.measured_w2[-1] == pytest.approx(
        float(wprox.metrics.bures_wasserstein(trajectory.final, TARGET))
    )
    assert certificate.holds
    assert not certificate.is_estimate
    assert certificate.dominant == "initial distance"


def test_contributions_add_up_and_the_largest_dominates():
    certificate = wprox.certify(step_sizes=[0.5, 1.0, 2.0], residuals=[0.1, 0.2, 0.9], modulus=0.8, initial_w2=1.0)
    assert sum(certificate.contributions.values()) == pytest.approx(certificate.objective[-1])
    assert certificate.dominant == "error of the last step"
    assert certificate.contributions["error of the last step"] == pytest.approx(0.9**2 / 0.8)
    many = wprox.certify(step_sizes=0.1, residuals=[0.5] * 100, modulus=1.0, initial_w2=1.0)
    assert many.dominant == "errors of earlier steps"
    assert many.holds is None
    assert many.kl is None  # nothing says that G is a KL


def test_sentence(trajectory):
    text = str(wprox.certify(trajectory, wprox.KL(TARGET)))
    assert text.startswith("After 4 steps W₂(p_4, q) ≤ ")
    assert "KL(p_4 ‖ q) ≤" in text
    assert "% of the bound is due to the initial distance" in text
    assert text.endswith("W₂(p_0, q) is exact, the step errors are as the solver computed them.")
    estimate = wprox.certify(
        trajectory, wprox.KL(TARGET), residuals=[wprox.stein.StepError(0.1, 0.02)] * 4, initial_w2="samples"
    )
    assert estimate.residuals == pytest.approx([0.14] * 4)  # estimate and two standard errors
    assert estimate.is_estimate
    assert estimate.sentence.endswith("the step errors are estimates: an estimate of a bound, not a proof.")
    moments = wprox.certify(trajectory, wprox.KL(TARGET), initial_w2="moments")
    assert "an upper bound from moments" in moments.sentence
    assert not moments.is_estimate
    assert moments.initial_w2.value**2 == pytest.approx(10 + 4.04 + 2)


def test_free_energies_are_kl_to_gibbs():
    """∫V + β∫ρ log ρ exceeds its minimum by β KL(· ‖ Gibbs); a target that is not normalised changes a constant."""
    functional = wprox.PotentialEnergy(lambda x: x.square().sum(-1), modulus=2.0) + 0.5 * wprox.Entropy()
    gibbs = wprox.Gaussian(torch.zeros(D).double(), 0.25 * torch.eye(D).double())
    trajectory = wprox.jko(functional, wprox.GaussianProx(), START, step_size=0.5, n_steps=6)
    certificate = wprox.certify(trajectory, functional, minimiser=gibbs)
    assert certificate.kl == pytest.approx(certificate.objective[-1] / 0.5)
    true = [float(wprox.KL(gibbs)(rho)) for rho in trajectory.measures[1:]]
    assert [gap / 0.5 for gap in certificate.measured_objective] == pytest.approx(true)
    assert certificate.holds
    shifted = wprox.KL(lambda x: 7.0 - 0.5 * x.square().sum(-1), modulus=1.0)
    trajectory = wprox.jko(shifted, wprox.GaussianProx(), START, step_size=0.5, n_steps=6)
    certificate = wprox.certify(trajectory, shifted, minimiser=TARGET)
    assert certificate.measured_objective[-1] == pytest.approx(float(wprox.KL(TARGET)(trajectory.final)))
    with pytest.raises(ValueError, match="the minimiser q is unknown"):
        wprox.certify(trajectory, shifted)


def test_interaction_bounds_the_objective_but_not_kl():
    functional = wprox.KL(TARGET) + wprox.InteractionEnergy(lambda z: z.square().sum(-1), modulus=0.0)
    trajectory = wprox.jko(functional, wprox.GaussianProx(), START, step_size=0.5, n_steps=3)
    certificate = wprox.certify(trajectory, functional, initial_w2=5.0)
    assert certificate.kl is None
    assert certificate.tv is None
    assert certificate.initial_w2 == wprox.metrics.Distance(5.0, "given")


def test_line_uses_the_minimiser_among_its_nodes():
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    start = wprox.Quantiles.from_icdf(lambda u: 3 + 0.2 * normal.icdf(u), 500)
    target = wprox.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    trajectory = wprox.jko(wprox.KL(target), wprox.QuantileProx(), start, step_size=2.0, n_steps=40)
    certificate = wprox.certify(trajectory, wprox.KL(target))
    assert certificate.holds
    assert certificate.measured_w2[-1] < 1e-8  # far below the distance between 500 nodes and the normal law


def test_line_after_one_step_knows_how_far_it_started():
    """q is searched from p_1, which is far from it: W₂(p_0, q) must be that of the nodes, to every digit of it."""
    functional = wprox.PotentialEnergy(lambda x: (x[:, 0] - 3).square(), modulus=2.0) + 2 * wprox.Entropy()
    start = normal_quantiles(-4.0, 0.2, 300)
    trajectory = wprox.jko(functional, wprox.QuantileProx(), start, step_size=0.01, n_steps=1)
    certificate = wprox.certify(trajectory, functional)
    nearly = wprox.jko(functional, wprox.QuantileProx(), start, step_size=100.0, n_steps=20).final
    w2 = float(wprox.metrics.wasserstein_1d(start, nearly))
    assert w2 == pytest.approx(math.hypot(7, 0.8), rel=1e-2)  # between N(−4, 0.04) and N(3, 1)
    assert certificate.initial_w2.kind == "exact"
    assert certificate.initial_w2.value == pytest.approx(w2, rel=1e-7)
    assert certificate.measured_objective[0] == pytest.approx(float(functional(trajectory.final) - functional(nearly)))
    assert certificate.holds


def test_line_refuses_where_the_minimiser_is_an_atom():
    """V = x²/2 + |x| has the minimiser δ_0, which no nodes reach: a search that ends elsewhere is not q."""
    functional = wprox.PotentialEnergy(lambda x: x[:, 0].square() / 2 + x[:, 0].abs(), modulus=1.0)
    start = wprox.Quantiles(torch.linspace(-1, 2, 1001, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="did not converge"):
        trajectory = wprox.jko(functional, wprox.QuantileProx(), start, step_size=1.0, n_steps=1)
    with pytest.raises(ValueError, match="the minimiser q is unknown"):
        wprox.certify(trajectory, functional)
    certificate = wprox.certify(trajectory, functional, initial_w2=1.0)  # ∫ x² over U(−1, 2) is 1
    assert certificate.initial_w2.kind == "given"
    assert certificate.measured_w2 is None
    singular = wprox.PotentialEnergy(lambda x: x[:, 0].square() / 2 - x[:, 0].abs().log(), modulus=1.0)
    steps = [replace(trajectory.steps[0], measure=start)]
    at_the_pole = wprox.Trajectory([start, wprox.Quantiles([-1.0, 0.0, 1.0])], trajectory.values, steps)
    with pytest.raises(ValueError, match="the minimiser q is unknown"):
        wprox.certify(at_the_pole, singular)


def test_line_does_not_hold_the_distance_of_the_nodes_against_the_steps():
    """q = N(0, 1) is 1.6e-3 away from 500 nodes, and the bounds soon are below that."""
    trajectory = wprox.jko(
        wprox.KL(LINE_TARGET), wprox.QuantileProx(), normal_quantiles(3.0, 0.2, 500), step_size=2.0, n_steps=40
    )
    certificate = wprox.certify(trajectory, wprox.KL(LINE_TARGET), minimiser=LINE_TARGET)
    assert certificate.holds, certificate.sentence
    assert certificate == wprox.certify(trajectory, wprox.KL(LINE_TARGET))
    alone = wprox.certify(trajectory, modulus=1.0, minimiser=LINE_TARGET)  # without the functional nothing is solved
    assert alone.initial_w2.kind == "exact up to the nodes"
    assert "W₂(p_0, q) is exact up to the nodes" in alone.sentence
    assert alone.holds is None


def test_steps_alone_and_values_from_outside(trajectory):
    certificate = wprox.certify(trajectory.steps, wprox.KL(TARGET), initial_w2=4.0)
    assert certificate.measured_w2 is None
    assert certificate.measured_objective is not None
    broken = wprox.certify(trajectory.steps, wprox.KL(TARGET), initial_w2=4.0, values=[9.0, 9.0, 9.0, 9.0])
    assert broken.violations == [1, 3, 4]  # the second step is short, its bound 10.7
    with pytest.raises(ValueError, match="values has 1 entries for 4 steps"):
        wprox.certify(trajectory.steps, wprox.KL(TARGET), initial_w2=4.0, values=[9.0])
    with pytest.raises(ValueError, match="the initial measure p_0 is unknown"):
        wprox.certify(trajectory.steps, wprox.KL(TARGET))


def test_inexact_inverses(trajectory):
    certificate = wprox.certify(trajectory, wprox.KL(TARGET), inverse_errors=0.001, lipschitz=[2.0, 1.0, 1.0, 1.0])
    assert certificate.inverse_w2 == pytest.approx(0.008)
    assert "at most 0.008 in W₂" in certificate.sentence
    with pytest.raises(ValueError, match="both inverse_errors and lipschitz"):
        wprox.certify(trajectory, wprox.KL(TARGET), inverse_errors=0.001)


def test_neural_flow_on_gaussian_data_is_within_its_estimated_certificate():
    """Affine neural blocks on draws of a known Gaussian: the true KL against the certificate by Stein critics."""
    functional = wprox.KL(TARGET)
    data = START.to_particles(4000, seed=0)
    solver = wprox.NeuralProx(map=wprox.AffineMap, learning_rate=0.05, iterations=150, seed=0)
    trajectory = wprox.jko(functional, solver, data, step_size=1.0, n_steps=6)
    fresh, values, law = START.sample(4000, seed=1), [], START
    errors = []
    for k, step in enumerate(trajectory.steps):
        with torch.no_grad():
            after = step.map(fresh)[0]
        errors.append(wprox.stein.stein_residual(fresh, after, lambda x: x, step.step_size, seed=k))
        fresh, law = after, law.push(step.map)
        values.append(float(functional(law).detach()))
    certificate = wprox.certify(trajectory, functional, residuals=errors, values=values)
    assert certificate.is_estimate
    assert certificate.initial_w2.kind == "upper bound from moments"
    assert certificate.holds, certificate.sentence
    assert values[-1] <= certificate.kl
    # the same on the particles that the blocks were trained on
    assert wprox.certify(trajectory, functional, residuals="critic", values=values).holds


def affine_error(source, map, gamma):
    """The exact ‖ξ‖ of an affine step for KL(· ‖ N(0, I)), and the new law."""
    matrix, shift = map.matrix.detach().double(), map.shift.detach().double()
    new = wprox.Gaussian(matrix @ source.loc + shift, matrix @ source.covariance_matrix @ matrix.mT)
    identity = torch.eye(len(shift), dtype=torch.float64)
    at_mean = new.loc + (new.loc - source.loc) / gamma
    slope = identity - torch.linalg.inv(new.covariance_matrix) + (identity - torch.linalg.inv(matrix)) / gamma
    return math.sqrt(float(at_mean.square().sum() + (slope @ new.covariance_matrix * slope).sum())), new


def test_flow_errors_are_those_of_its_blocks():
    """Blocks of three step sizes, cut short so that each has an error that can be seen, against their exact errors."""
    law = wprox.Gaussian(torch.tensor([2.0, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double())
    flow = wprox.JKOFlow(
        map=wprox.AffineMap,
        step_sizes=[0.5, 1.0, 2.0],
        n_blocks=3,
        standardize=False,
        fine_tune=False,
        learning_rate=0.05,
        iterations=100,
    ).fit(law.sample(2000, seed=0))
    certificate = flow.certificate(law.sample(10_000, seed=1), initial_w2=4.0, values=[0.0] * 3, seed=3)
    assert certificate.initial_w2 == wprox.metrics.Distance(4.0, "given")
    assert certificate.measured_objective == [0.0] * 3
    assert certificate.step_sizes == flow.step_sizes_
    assert len(certificate.residuals) == 3
    for block, gamma, found in zip(flow.blocks_, flow.step_sizes_, certificate.residuals, strict=True):
        unmoved = affine_error(law, block, 1e9)[0]  # without (id − T⁻¹)/γ
        exact, law = affine_error(law, block, gamma)
        assert unmoved > 1.1 * exact
        assert exact > 0.05
        assert exact < found < 1.05 * exact, (exact, found)  # the estimate and two standard errors


@pytest.mark.parametrize("settings", [{"integer": True}, {"smoothing": 0.1}], ids=["integer", "smoothed"])
def test_flow_does_not_repeat_rows_for_the_critic(settings):
    x = torch.randint(0, 9, (200, 2), generator=torch.Generator().manual_seed(0)).double()
    flow = wprox.JKOFlow(map=wprox.AffineMap, n_blocks=1, iterations=5, fine_tune=False, **settings).fit(x)
    with pytest.raises(ValueError, match="at least 40 points to fit and evaluate on, got 39"):
        flow.certificate(x[:39], initial_w2=1.0)
    assert flow.certificate(x[:40], initial_w2=1.0).is_estimate


def test_multiples_of_kl_bound_kl():
    functional = 2 * wprox.KL(TARGET)
    trajectory = wprox.jko(functional, wprox.GaussianProx(), START, step_size=0.5, n_steps=4)
    certificate = wprox.certify(trajectory, functional)
    assert certificate.modulus == 2
    assert certificate.kl == pytest.approx(certificate.objective[-1] / 2)
    assert certificate.measured_objective[-1] == pytest.approx(2 * float(wprox.KL(TARGET)(trajectory.final)))
    assert certificate.holds
    # with an entropy besides, q is the Gibbs law and no longer the target
    other = wprox.KL(TARGET) + 0.5 * wprox.Entropy()
    trajectory = wprox.jko(other, wprox.GaussianProx(), START, step_size=0.5, n_steps=2)
    with pytest.raises(ValueError, match="the minimiser q is unknown"):
        wprox.certify(trajectory, other)


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_critics_know_the_weight_of_the_entropy(beta):
    """The identity step at N(0, β I), which is stationary for V = |x|²/2 and β ∫ρ log ρ: no error but noise."""
    points = math.sqrt(beta) * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    functional = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2, modulus=1.0) + beta * wprox.Entropy()
    rho = wprox.Particles(points)
    step = wprox.Step(rho, wprox.AffineMap(2).double(), torch.tensor(0.0), torch.tensor(0.0), 1.0, None, True, 1, 0.0)
    certificate = wprox.certify(
        wprox.Trajectory([rho, rho], [torch.tensor(0.0)] * 2, [step]), functional, residuals="critic", initial_w2=1.0
    )
    assert certificate.residuals[0] < 0.1 * math.sqrt(2 * beta)  # for β = 1 in its place: |1 − 1/β| √(2β)


def test_residuals_from_an_array():
    certificate = wprox.certify(step_sizes=1.0, residuals=np.zeros(2), modulus=1.0, initial_w2=1.0)
    assert certificate.step_sizes == [1.0, 1.0]
    one = wprox.certify(step_sizes=[1.0], residuals=np.float32(0.5), modulus=torch.tensor(1.0), initial_w2=1.0)
    assert one.residuals == [0.5]
    assert wprox.theory.w2_bound(1.0, np.float32(2.0), torch.tensor(0.0), 1.0, n_steps=1)[-1] == 0.5**0.5


def test_minimum_is_taken_from_outside(trajectory):
    known = wprox.certify(trajectory, wprox.KL(TARGET))
    lower = wprox.certify(trajectory, wprox.KL(TARGET), minimum=-0.5)
    assert lower.measured_objective == pytest.approx([value + 0.5 for value in known.measured_objective])


def test_plot(trajectory):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = wprox.certify(trajectory, wprox.KL(TARGET)).plot()
    assert [len(ax.lines) for ax in axes] == [2, 2]
    at_rest = wprox.jko(wprox.KL(TARGET), wprox.GaussianProx(), TARGET, step_size=1.0, n_steps=2)
    axes = wprox.certify(at_rest, wprox.KL(TARGET), values=[0.0, 0.0], minimum=0.0).plot()
    assert list(axes[1].lines[1].get_xdata()) == []  # nothing positive was measured: an axis without numbers of its own
    given = pyplot.subplots(1, 2)[1]
    axes = wprox.certify(step_sizes=1.0, residuals=[0.1], modulus=1.0, initial_w2=1.0).plot(given)
    assert [len(ax.lines) for ax in axes] == [1, 1]
    with pytest.raises(ValueError, match="drawn on two axes, got 1"):
        wprox.certify(step_sizes=1.0, residuals=[0.1], modulus=1.0, initial_w2=1.0).plot([given[0]])
    pyplot.close("all")


def test_refusals(trajectory):
    functional = wprox.KL(TARGET)
    with pytest.raises(ValueError, match="modulus λ of the functional is unknown"):
        wprox.certify(trajectory, wprox.KL(TARGET.log_prob))
    with pytest.raises(ValueError, match="modulus λ of the functional is unknown"):
        wprox.certify(trajectory)
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        wprox.certify(trajectory, wprox.Entropy())
    with pytest.raises(ValueError, match="must be positive and finite, got -1"):
        wprox.certify(trajectory, functional, modulus=-1.0)
    unknown = [replace(step, residual=None) for step in trajectory.steps[2:]]
    with pytest.raises(ValueError, match="the error of step 2 is unknown"):
        wprox.certify([*trajectory.steps[:2], *unknown], functional, initial_w2=1.0)
    with pytest.raises(ValueError, match="there are no steps"):
        wprox.certify([], functional, initial_w2=1.0)
    with pytest.raises(ValueError, match="residuals has 1 entries for 4 steps"):
        wprox.certify(trajectory, functional, residuals=[0.1])
    with pytest.raises(ValueError, match="step_sizes has 1 entries for 4 steps"):
        wprox.certify(trajectory, functional, step_sizes=[0.1])
    with pytest.raises(ValueError, match='numbers or "critic"'):
        wprox.certify(trajectory, functional, residuals="guess")
    with pytest.raises(ValueError, match="Particles with equal weights"):
        wprox.certify(trajectory, functional, residuals="critic")
    with pytest.raises(ValueError, match="sum of PotentialEnergy, Entropy and KL"):
        wprox.certify(trajectory, wprox.PorousMedium(2.0), modulus=1.0, residuals="critic")
    with pytest.raises(ValueError, match=r"residuals\[0\]|errors\[0\]"):
        wprox.certify(trajectory, functional, residuals=[math.nan, 0.0, 0.0, 0.0])


def test_a_minimiser_of_another_dimension_is_named():
    start, target = (wprox.Gaussian(torch.full((2,), m).double(), torch.eye(2).double()) for m in (1.0, 0.0))
    trajectory = wprox.jko(wprox.KL(target), wprox.GaussianProx(), start, step_size=1.0, n_steps=2)
    wrong = wprox.Gaussian(torch.zeros(3).double(), torch.eye(3).double())
    with pytest.raises(ValueError, match="lives in dimension 3, the measures in dimension 2"):
        wprox.certify(trajectory, wprox.KL(target), minimiser=wrong)
