"""What inference makes of a crossing, made once; and how draws are checked by hand."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from crossings import CROSSINGS, NOISE, ByHand
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import pyrox_ppl as px

KEY = jax.random.key(0)
CHAINS, DRAWS = 2, 8
NUMBER = CHAINS * DRAWS
FITTED = 40
WARMUP, STEPS = 12, 20
CLOSE = {"rtol": 3e-4, "atol": 1e-3}


USUAL = (
    *(f"mlp-{prior}" for prior in ("normal", "around", "NonCentered")),
    *("plate-hierarchical", "ties-normal", "learned-hierarchical", "state-normal"),
    *("spectral-normal", "noisy-fan_in", "attention-non-centred-fan_in"),
    *("convolution-normal", "gru-hierarchical", "walk-normal"),
)
# What takes the tree of draws further is run on fewer: each way to read, each kind of
# value that is no draw.
FEW = (
    *("mlp-NonCentered", "plate-hierarchical", "learned-hierarchical", "state-normal"),
    *("noisy-fan_in", "convolution-normal", "walk-normal"),
)


def over(often: Any = FEW, where: Any = lambda crossing: True) -> Any:
    """Run a test on every crossing; all but some of them are slow."""
    unknown = set(often) - set(CROSSINGS)
    assert not unknown, unknown
    return pytest.mark.parametrize(
        "own",
        [
            pytest.param(n, id=n, marks=() if n in often else pytest.mark.slow)
            for n, crossing in CROSSINGS.items()
            if where(crossing)
        ],
        indirect=True,
    )


@pytest.fixture
def own(request: pytest.FixtureRequest) -> "Runs":
    """The runs of a crossing, shared by the tests of a process."""
    return runs(request.param)


class Runs:
    """A crossing, its draws and trees."""

    def __init__(self, name: str) -> None:
        self.crossing = CROSSINGS[name]
        self.params = self.crossing.trained()
        self.state = self.params.get("state")
        # How `predict` and `diagnose` call the module alone.
        self.called = {"name": "net", "call": self.crossing.kind.called}

    @functools.cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Draws from the prior, as ``mcmc.get_samples()`` has them."""
        run = Predictive(self.crossing.model, num_samples=NUMBER, params=self.params)
        drawn = jax.device_get(run(KEY, self.crossing.x))
        return {name: value for name, value in drawn.items() if name != "y"}

    @functools.cached_property
    def by_chain(self) -> dict[str, np.ndarray]:
        """The same draws as two chains."""
        return {
            name: value.reshape(CHAINS, DRAWS, *value.shape[1:])
            for name, value in self.draws.items()
        }

    def tree_of(self, x: Any, **kwargs: Any) -> Any:
        """The tree of these draws on some data."""
        return px.to_datatree(
            self.by_chain,
            x,
            y=self.crossing.y_at(x),
            model=self.crossing.model,
            params=self.params,
            batch_ndims=2,
            **kwargs,
        )

    @functools.cached_property
    def tree(self) -> Any:
        """The tree of these draws on their own data."""
        return self.tree_of(self.crossing.x)

    @functools.cached_property
    def tree_on_new(self) -> Any:
        """The tree of these draws on other data."""
        return self.tree_of(self.crossing.new_x)

    def hands(self, x: Any, draws: Any = None, **kwargs: Any) -> list[ByHand]:
        """Every draw by hand, with the trained parameters."""
        draws = self.draws if draws is None else draws
        y = self.crossing.y_at(x)
        kwargs = {"params": self.params, "state": self.state} | kwargs
        number = len(next(iter(draws.values())))
        each = [{n: v[i] for n, v in draws.items()} for i in range(number)]
        return [self.crossing.by_hand(draw, x, y, **kwargs) for draw in each]

    def f(self, x: Any, **kwargs: Any) -> np.ndarray:
        """The function by hand, of every draw."""
        return np.stack([hand.f for hand in self.hands(x, **kwargs)])

    @functools.cached_property
    def mcmc(self) -> MCMC:
        """A short run of NumPyro's NUTS, compiled whole as well."""
        kernel = NUTS(self.crossing.model, max_tree_depth=3)
        return self.run(kernel, px.infer.CompiledMCMC)

    def run(self, kernel: Any, make: Any = MCMC, **kwargs: Any) -> MCMC:
        """A short run of a kernel."""
        mcmc = make(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            progress_bar=False,
            **kwargs,
        )
        fields = ("potential_energy",)
        mcmc.run(KEY, self.crossing.x, y=self.crossing.y, extra_fields=fields)
        return mcmc

    @functools.cached_property
    def guide(self) -> AutoNormal:
        return AutoNormal(self.crossing.training)

    @functools.cached_property
    def fit(self) -> Any:
        """A short run, compiled whole: NumPyro's is a few hundred programs."""
        return self.train(self.guide, px.infer.CompiledSVI)

    def svi(self, guide: Any, make: Any = SVI, optim: Any = None) -> SVI:
        optim = Adam(0.01) if optim is None else optim
        return make(self.crossing.training, guide, optim, Trace_ELBO())

    def train(self, guide: Any, make: Any = SVI) -> Any:
        svi, own = self.svi(guide, make), self.crossing
        return svi.run(KEY, STEPS, own.x, y=own.y, progress_bar=False)

    def tree_of_fit(self, fit: Any, guide: Any) -> Any:
        own = self.crossing
        return px.to_datatree(
            fit,
            own.x,
            y=own.y,
            guide=guide,
            model=own.model,
            num_samples=FITTED,
            rng_key=KEY,
        )

    @functools.cached_property
    def fitted(self) -> Any:
        """The tree of the fit."""
        return self.tree_of_fit(self.fit, self.guide)


@functools.cache
def runs(name: str) -> Runs:
    """The runs of a crossing, shared by the tests of a process."""
    return Runs(name)


def state_of(fit: Any) -> Any:
    """The mutable state that SVI left, or None."""
    found = fit.state.mutable_state
    return None if found is None else found["state"]


def state_of_run(own: Runs) -> Any:
    """The mutable state under which MCMC samples: that after NumPyro's first pass."""
    start = own.crossing.kind.state
    if start is None or "mean" not in start:
        return start
    return {"mean": 0.1 * own.crossing.x.mean(0)}


def draws_in(tree: Any, group: str = "posterior") -> dict[str, np.ndarray]:
    """The draws of a tree along one axis, by site."""
    return {
        variable.attrs.get("numpyro_name", name): variable.values.reshape(
            -1, *variable.shape[2:]
        )
        for name, variable in tree[group].data_vars.items()
    }


def check_noise(y: Any, f: Any, least: int = 20) -> None:
    """Predictions are the function and its noise, drawn anew for every draw."""
    noise = (np.asarray(y, np.float64) - np.asarray(f)) / NOISE
    assert np.abs(noise).max() < 6.0
    assert noise.size < least or 0.6 < noise.std() < 1.5
    assert len(np.unique(noise[:, ..., 0].round(6))) > len(noise)


def check_tree(own: Runs, tree: Any, x: Any, **kwargs: Any) -> list[ByHand]:
    """Every group of a tree against the hand: what its draws mean at these inputs."""
    draws = draws_in(tree)
    own_sites = own.crossing.latent() | own.crossing.deterministic()
    assert set(draws) == own_sites
    hands = own.hands(x, draws, **kwargs)
    close = functools.partial(np.testing.assert_allclose, **CLOSE)
    close(draws["f"], np.stack([hand.f for hand in hands]))
    densities = draws_in(tree, "log_likelihood")["y"]
    close(densities, np.stack([hand.log_likelihood for hand in hands]))
    priors = draws_in(tree, "log_prior")
    assert set(priors) == own.crossing.latent()
    for site, values in priors.items():
        close(values, np.stack([hand.log_prior[site] for hand in hands]), err_msg=site)
    check_joint(tree["sample_stats"]["lp"].values.ravel(), hands)
    check_noise(draws_in(tree, "posterior_predictive")["y"], draws["f"])
    np.testing.assert_array_equal(tree["observed_data"]["y"], own.crossing.y_at(x))
    return hands


def check_joint(values: Any, hands: list[ByHand]) -> None:
    """Log joint densities of unconstrained values; of many float32 terms."""
    joint = [hand.log_joint + hand.jacobian for hand in hands]
    np.testing.assert_allclose(values, joint, rtol=2e-5, atol=0.05)


def check_prediction(prediction: Any, values: Any) -> None:
    """A summary of predictions against the values by hand, along the first axis."""
    close = functools.partial(np.testing.assert_allclose, **CLOSE)
    close(prediction.mean, values.mean(0))
    close(prediction.std, values.std(0))
    for q, quantile in prediction.quantiles.items():
        close(quantile, np.quantile(values, q, axis=0))
