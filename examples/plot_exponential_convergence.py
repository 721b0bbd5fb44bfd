r"""
Exponential convergence, and its plateau
========================================

Each proximal step of a λ-convex functional shrinks the squared distance to its minimiser q by the factor
(1 + γλ/2)⁻¹ at least, until the errors ε of the steps take over:

.. math:: W_2^2(p_n, q) \le (1 + \gamma\lambda/2)^{-n} W_2^2(p_0, q) + 4\varepsilon^2/\lambda^2.

Here the steps are exact, on the line and between Gaussians, and an error of known size is put into each: the step is
solved for F + ε⟨u, ·⟩ with a unit vector u, so that its first-order error with respect to F is ε u. An error that
always points one way is the worst there is; it settles at W₂² = ε²/λ², a quarter of the bound's plateau.
"""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import wprox


class WithError(wprox.Solver):
    """The steps of an exact solver with a first-order error ε in the direction of the first axis."""

    def __init__(self, solver, error):
        self.solver, self.error = solver, error

    def step(self, functional, measure, step_size, **options):
        tilt = wprox.PotentialEnergy(lambda x: self.error * x[:, 0])
        step = self.solver.step(functional + tilt, measure, step_size, **options)
        return replace(step, value=functional(step.measure), residual=self.error + step.residual)


def run(functional, solver, start, step_size, error, n_steps):
    trajectory = wprox.jko(functional, WithError(solver, error), start, step_size=step_size, n_steps=n_steps)
    return wprox.certify(trajectory, functional)


# %%
# On the line the potential need not be quadratic: V = x²/2 + log(2 cosh 2x)/2 has V″ ≥ 1, so λ = 1.
line = wprox.PotentialEnergy(
    lambda x: x[:, 0] ** 2 / 2 + torch.nn.functional.softplus(4 * x[:, 0]) / 2 - x[:, 0], modulus=1.0
)
line = line + wprox.Entropy()
normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
on_the_line = wprox.Quantiles.from_icdf(lambda u: 4 + 0.2 * normal.icdf(u), 1000)

target = wprox.Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
in_the_plane = wprox.Gaussian(torch.tensor([4.0, -1.0]), torch.tensor([[0.2, 0.1], [0.1, 3.0]], dtype=torch.float64))

problems = (
    ("the line, a potential that is not quadratic", line, wprox.QuantileProx(), on_the_line),
    ("Gaussians of the plane, KL", wprox.KL(target), wprox.GaussianProx(), in_the_plane),
)

# %%
# Solid: the measured W₂²; dashed: the bound. The last panel counts the steps to KL ≤ c ε².
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for ax, (title, functional, solver, start) in zip(axes, problems, strict=False):
    for k, (step_size, error) in enumerate([(0.2, 0.1), (1.0, 0.1), (1.0, 0.01), (1.0, 0.0)]):
        certificate = run(functional, solver, start, step_size, error, n_steps=40)
        assert certificate.holds
        label = f"γ = {step_size:g}, ε = {error:g}"
        ax.semilogy([w2**2 for w2 in certificate.measured_w2], color=f"C{k}", label=label)
        ax.semilogy([w2**2 for w2 in certificate.w2], "--", color=f"C{k}")
    ax.set(title=title, xlabel="step n", ylabel="$W_2^2(p_n, q)$", ylim=(1e-7, 1e2))
axes[0].legend(fontsize=8)

errors = [10 ** (-k / 2) for k in range(1, 9)]
for step_size, color in ((0.2, "C0"), (1.0, "C1")):
    measured, guaranteed = [], []
    for error in errors:
        certificate = run(wprox.KL(target), wprox.GaussianProx(), in_the_plane, step_size, error, n_steps=160)
        goal = (1 + 5 / (2 * step_size)) * error**2  # c ε² with the constant of wprox.theory.steps_needed, λ = 1
        measured.append(1 + next(n for n, kl in enumerate(certificate.measured_objective) if kl <= goal))
        guaranteed.append(wprox.theory.steps_needed(error, certificate.initial_w2.value, step_size, 1.0))
    logarithms = [math.log(1 / error) for error in errors]
    axes[2].plot(logarithms, measured, "o-", color=color, label=f"γ = {step_size:g}, measured")
    axes[2].plot(logarithms, guaranteed, "--", color=color, label=f"γ = {step_size:g}, guaranteed")
axes[2].set(title="steps to KL ≤ c ε²", xlabel="log(1/ε)", ylabel="steps")
axes[2].legend(fontsize=8)
plt.show()
