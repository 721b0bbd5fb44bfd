"""
Bayesian logistic regression
============================

Which tumours are malignant (Wisconsin breast cancer data, from scikit-learn), by logistic regression with a normal
prior on the 31 coefficients. `JKOSampler` draws from the posterior and gives its evidence; a long run of Langevin
dynamics and the best Gaussian approximation are held against it. What counts is the predictive density of patients that
were not trained on, averaged over the posterior.
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
    return logsigmoid(theta @ train.T).sum(1) + log_prior


# %%
# Without an initial law the sampler fits one: the best Gaussian approximation, by proximal steps of `GaussianProx`.
sampler = wprox.JKOSampler(
    log_posterior, dim=d, n_blocks=1, iterations=200, batch_size=512, fine_tune_iterations=150, n_particles=20_000
).run()
print("log evidence", sampler.log_normalizer(seed=0))
theta = sampler.sample(4000, seed=0)
gaussian = sampler.initial_


# %%
# Langevin dynamics with Metropolis' correction, preconditioned with the Gaussian's covariance LLᵀ.
def langevin(n_chains=500, n_steps=1500, keep_every=100, step=0.15):
    scale = gaussian.scale_tril
    generator = torch.Generator().manual_seed(0)

    def value_and_gradient(u):
        u = u.detach().requires_grad_()
        value = log_posterior(gaussian.loc + u @ scale.T)
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
            kept.append(gaussian.loc + u @ scale.T)
    return torch.cat(kept)


chain = langevin()
posteriors = {"JKOSampler": theta, "Langevin": chain, "Gaussian": gaussian.sample(4000, seed=0)}
predictive = {name: torch.sigmoid(draws @ test.T).mean(0).log() for name, draws in posteriors.items()}
predictive["JKOSampler, weighted"] = (sampler.importance_weights(theta) @ torch.sigmoid(theta @ test.T)).log()
for name, log_likelihood in predictive.items():
    error = float(log_likelihood.std()) / math.sqrt(len(test))
    accuracy = float((log_likelihood > math.log(0.5)).float().mean())
    print(f"{name:<22} test log-likelihood {float(log_likelihood.mean()):.4f} ± {error:.4f}  accuracy {accuracy:.3f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
widest = int(chain.std(0).argmax())
for name, draws in posteriors.items():
    axes[0].hist(draws[:, widest], 60, density=True, histtype="step", label=name)
axes[0].set(title="the coefficient that is known least", xlabel="θ")
axes[0].legend()
axes[1].scatter(predictive["Langevin"].exp(), predictive["JKOSampler"].exp(), s=10)
axes[1].plot([0, 1], [0, 1], "k", lw=0.5)
axes[1].set(title="probability of the true label, each test patient", xlabel="Langevin", ylabel="JKOSampler")
plt.show()
