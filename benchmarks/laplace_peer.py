"""AutoLaplace beside laplace-torch: the same weights and data, variances and evidence.

A small network with fixed weights, regression and three classes. For each structure,
over all weights and over those of the last layer, the largest relative difference of
the variances of the network's outputs at new inputs (those of the linearised network),
and of the log marginal likelihoods. laplace-torch (Daxberger et al., 2021) and torch
must be installed; they are no dependency of ours.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import pyrox_ppl as px
from pyrox_ppl.infer import AutoLaplace

try:
    import torch
    from laplace import Laplace
except ImportError as error:
    sys.exit(f"skipped: {error}; pip install laplace-torch runs this comparison.")

ROWS, WIDTH, NOISE, PRIOR_STD = 40, 5, 0.3, 0.8
PARTS = [f"layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")]
RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(ROWS, 2)), RNG.normal(size=(7, 2))


def outcomes(classes):
    """Three classes, or numbers."""
    f = np.sin(2 * X[:, 0]) + X[:, 1]
    if classes:
        return np.digitize(f, [-0.5, 0.5])
    return (f + NOISE * RNG.normal(size=ROWS))[:, None]


def of_ours(net, y, structure, last, classes):
    """The variances of the outputs at new inputs, and the log evidence."""

    def model(x, y=None):
        with px.bayesianize(prior_std=PRIOR_STD):
            bound = px.bind(net, "net")
        f = jax.vmap(bound)(x)
        with numpyro.plate("row", len(x)):
            law = dist.Categorical(logits=f)
            if not classes:
                law = dist.Normal(f, NOISE).to_event(1)
            numpyro.sample("y", law, obs=y)

    where = "net.layers.1.*" if last else None
    guide = AutoLaplace(model, structure, where=where)
    with handlers.seed(rng_seed=0), handlers.block():
        guide(X, y)
    weights = {f"net.{path}": value_at(net, path) for path in PARTS}
    fit = {f"{name}_auto_loc": value for name, value in weights.items()}
    # The weights are no mode, and need not be one for this comparison.
    fit = guide.add_curvature(fit, X, y, max_decrement=np.inf)
    laplace = guide._fit(fit)
    posterior = laplace.posterior(0.0)
    sites = list(laplace.gradient)

    def outputs(values, x):
        layers = {**weights, **values}
        h = jnp.tanh(layers["net.layers.0.weight"] @ x + layers["net.layers.0.bias"])
        return layers["net.layers.1.weight"] @ h + layers["net.layers.1.bias"]

    variances = []
    for x in NEW:
        slopes = jax.jacrev(outputs)({name: weights[name] for name in sites}, x)
        for k in range(slopes[sites[0]].shape[0]):
            row = {name: slopes[name][k] for name in sites}
            solved = posterior.solve(row)
            variances.append(sum(float(jnp.sum(row[n] * solved[n])) for n in sites))
    evidence = float(guide.log_evidence(fit))
    if last:  # laplace-torch leaves the prior of the other weights out
        others = [weights[name] for name in weights if name not in sites]
        law = dist.Normal(0.0, PRIOR_STD)
        evidence -= sum(float(law.log_prob(value).sum()) for value in others)
    return np.array(variances), evidence


def value_at(net, path):
    _, number, part = path.split(".")
    return getattr(net.layers[int(number)], part)


def of_peer(net, y, structure, last, classes):
    """The same by laplace-torch."""
    torch.set_default_dtype(torch.float64)
    layers = [torch.nn.Linear(2, WIDTH), torch.nn.Linear(WIDTH, 3 if classes else 1)]
    for own, layer in zip(net.layers, layers, strict=True):
        layer.weight.data = torch.tensor(np.asarray(own.weight))
        layer.bias.data = torch.tensor(np.asarray(own.bias))
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(y))
    laplace = Laplace(
        model,
        "classification" if classes else "regression",
        subset_of_weights="last_layer" if last else "all",
        hessian_structure=structure,
        prior_precision=PRIOR_STD**-2,
        **({} if classes else {"sigma_noise": NOISE}),
    )
    laplace.fit(torch.utils.data.DataLoader(data, batch_size=ROWS))
    _, covariance = laplace._glm_predictive_distribution(torch.tensor(NEW))
    variances = torch.diagonal(covariance, dim1=-2, dim2=-1).detach().numpy()
    return variances.reshape(-1), float(laplace.log_marginal_likelihood())


def main():
    """Print a row per task and structure."""
    jax.config.update("jax_enable_x64", True)
    print(f"{'task':16}{'weights':12}{'structure':11}{'variance':>11}{'evidence':>11}")
    for classes in (False, True):
        task, width = ("classification", 3) if classes else ("regression", 1)
        y = outcomes(classes)
        net = eqx.nn.MLP(2, width, WIDTH, 1, activation=jnp.tanh, key=jax.random.key(1))
        for last in (False, True):
            for structure in ("full", "kron", "diag"):
                case = net, y, structure, last, classes
                (ours, evidence), (peer, other) = of_ours(*case), of_peer(*case)
                of_variance = np.abs(ours / peer - 1).max()
                part = "last layer" if last else "all"
                print(
                    f"{task:16}{part:12}{structure:11}{of_variance:11.1e}"
                    f"{abs(evidence - other) / abs(other):11.1e}"
                )


if __name__ == "__main__":
    main()
