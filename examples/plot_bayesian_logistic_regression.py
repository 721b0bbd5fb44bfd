"""
Bayesian logistic regression
============================

Which tumours are malignant (Wisconsin breast cancer data), by logistic regression with a normal prior on the 31
coefficients. `JKOSampler` draws from the posterior and gives its evidence. Long Langevin dynamics and the best Gaussian
approximation are held against it by the predictive density of patients that none of them was trained on.
"""

import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import logsigmoid

import wprox

features, labels = load_breast_cancer(return_X_y=True)
labels = torch.tensor(2.0 * labels - 1).float()[:, None]
x_train, x_test, y_train, y_test = train_test_split(features, labels, test_size=0.3, random_state=0, stratify=labels)
scaler = StandardScaler().fit(x_train)


def signed(x, y):
    """Rows (1, x) times ±1, so that the likelihood of a row is sigmoid(row · θ)."""
    return y * torch.cat((torch.ones(len(y), 1), torch.tensor(scaler.transform(x)).float()), 1)


train, test = signed(x_train, y_train), signed(x_test, y_test)
d = train.shape[1]


def log_posterior(theta):
    """log p(y | θ) + log N(θ; 0, I), up to the evidence."""
    log_prior = -0.5 * (theta.square().sum(1) + d * math.log(2 * math.pi))
    return logsigmoid(theta @ train.to(theta).T).sum(1) + log_prior


# %%
# Two long steps of `GaussianProx` are the best Gaussian approximation; the sampler fits a start like it by itself.
standard = wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
gaussian = wprox.jko(wprox.KL(log_posterior), wprox.GaussianProx(tolerance=1e-4), standard, [1, 100], n_steps=2).final
sampler = wprox.JKOSampler(
    log_posterior, dim=d, n_blocks=1, iterations=200, batch_size=512, fine_tune_iterations=150, n_particles=20_000
).run()
print("log evidence", sampler.log_normalizer(seed=0))
theta = sampler.sample(4000, seed=0)


# %%
# Langevin dynamics with Metropolis' correction, preconditioned with the Gaussian's covariance LLᵀ.
def langevin(n_chains=500, n_steps=1500, keep_every=100, step=0.15):
    loc, scale = gaussian.loc.float(), gaussian.scale_tril.float()
    generator = torch.Generator().manual_seed(0)

    def value_and_gradient(u):
        u = u.detach().requires_grad_()
        value = log_posterior(loc + u @ scale.T)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    def log_move(a, b, gradient):
        return -(b - a - step * gradient).square().sum(1) / (4 * step)

    u, kept = torch.randn(n_chains, d, generator=generator), []
    value, gradient = value_and_gradient(u)
    for k in range(n_steps):
        move = u + step * gradient + math.sqrt(2 * step) * torch.randn(u.shape, generator=generator)
        new_value, new_gradient = value_and_gradient(move)
        ratio = new_value - value + log_move(move, u, new_gradient) - log_move(u, move, gradient)
        accept = torch.rand(n_chains, generator=generator) < ratio.exp()
        u[accept], value[accept], gradient[accept] = move[accept], new_value[accept], new_gradient[accept]
        if k >= n_steps // 5 and k % keep_every == 0:
            kept.append(loc + u @ scale.T)
    return torch.cat(kept)


chain = langevin()
posteriors = {"JKOSampler": theta, "Langevin": chain, "Gaussian": gaussian.sample(4000, seed=0).float()}
predictive = {name: torch.sigmoid(draws @ test.T).mean(0).log() for name, draws in posteriors.items()}
predictive["JKOSampler, weighted"] = (sampler.importance_weights(theta) @ torch.sigmoid(theta @ test.T)).log()
for name, log_likelihood in predictive.items():
    error = float(log_likelihood.std()) / math.sqrt(len(test))
    accuracy = float((log_likelihood > math.log(0.5)).float().mean())
    print(f"{name:<22} test log-likelihood {float(log_likelihood.mean()):.4f} ± {error:.4f}  accuracy {accuracy:.3f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
skewed = int(((chain - chain.mean(0)) / chain.std(0)).pow(3).mean(0).abs().argmax())
for name, draws in posteriors.items():
    axes[0].hist(draws[:, skewed], 40, density=True, histtype="step", label=name)
axes[0].set(title="the most skewed coefficient", xlabel="θ")
axes[0].legend()
axes[1].scatter(predictive["Langevin"].exp(), predictive["JKOSampler"].exp(), s=10)
axes[1].plot([0, 1], [0, 1], "k", lw=0.5)
axes[1].set(title="probability of the true label, each test patient", xlabel="Langevin", ylabel="JKOSampler")
plt.show()
