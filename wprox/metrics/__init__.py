"""How far apart two laws are, what weights are worth, and how well generated rows stand in for real ones."""

from wprox.metrics.distances import (
    Distance,
    bures_wasserstein,
    energy_distance,
    mmd,
    sinkhorn_divergence,
    sliced_w2,
    w2,
    wasserstein,
    wasserstein_1d,
)
from wprox.metrics.generated import TwoSample, Utility, classifier_two_sample, train_on_synthetic
from wprox.metrics.weights import ess, pareto_k

__all__ = [
    "Distance",
    "TwoSample",
    "Utility",
    "bures_wasserstein",
    "classifier_two_sample",
    "energy_distance",
    "ess",
    "mmd",
    "pareto_k",
    "sinkhorn_divergence",
    "sliced_w2",
    "train_on_synthetic",
    "w2",
    "wasserstein",
    "wasserstein_1d",
]
