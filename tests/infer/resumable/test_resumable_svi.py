"""run_svi: NumPyro's losses and parameters, whatever fails on the way."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from pyrox_ppl.infer import run_svi
from pyrox_ppl.infer.resumable import _store

KEY = jax.random.key(5)
Y = np.array([0.3, 0.9, 1.4], np.float32)


class Died(BaseException):
    """What stands for the end of a process."""


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def make(rate=0.1):
    schedule = optax.cosine_decay_schedule(rate, 30)
    return SVI(model, AutoNormal(model), optax.adam(schedule), Trace_ELBO())


@pytest.fixture(scope="module")
def expected():
    """NumPyro's own run."""
    return make().run(KEY, 30, Y, progress_bar=False)


def assert_same(result, expected):
    assert type(result) is type(expected)
    for one, other in (
        (result.params, expected.params),
        (result.losses, expected.losses),
        (result.state.optim_state, expected.state.optim_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (result.state.rng_key == expected.state.rng_key).all()


def test_it_is_numpyros_run_bit_for_bit_whatever_fails(tmp_path, monkeypatch, expected):
    path = tmp_path / "run"
    for place in ("draws", "manifest", "renamed"):
        passed = []

        def reached(point, place=place, passed=passed):
            passed.append(point)
            if point == place and passed.count(place) == 3:
                raise Died

        monkeypatch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            run_svi(make(), KEY, 30, Y, path=path, segment=4, progress_bar=False)
    monkeypatch.undo()
    result = run_svi(make(), KEY, 30, Y, path=path, segment=4, progress_bar=False)
    assert_same(result, expected)


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    options = {"segment": 2, "progress_bar": False}
    run_svi(make(), KEY, 4, Y, path=path, **options)
    with pytest.raises(ValueError, match=r"num_steps was 4 and is 6"):
        run_svi(make(), KEY, 6, Y, path=path, **options)
    with pytest.raises(ValueError, match="computations of the model, or of the"):
        run_svi(make(rate=0.2), KEY, 4, Y, path=path, **options)
    with pytest.raises(ValueError, match="argument 0 was"):
        run_svi(make(), KEY, 4, 2 * Y, path=path, **options)
    for name, call in (
        ("num_steps", lambda: run_svi(make(), KEY, 0, Y, path=path)),
        ("segment", lambda: run_svi(make(), KEY, 4, Y, path=path, segment=0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a positive"):
            call()


def named(prefix):
    """A model whose sites have names that sort alike, and hash otherwise."""

    def model(y):
        names = [f"{prefix}{i}" for i in range(8)]
        terms = [numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
        numpyro.sample("y", dist.Normal(sum(terms), 1.0).expand([3]).to_event(), obs=y)

    return model


def test_the_loss_has_one_order_of_sites_in_every_process(tmp_path):
    """Sets of other names are in another order, as sets are in another process."""
    programs, losses = set(), set()
    for prefix in "abc":
        svi = SVI(named(prefix), AutoDelta(named(prefix)), optax.sgd(0.1), Trace_ELBO())
        path = tmp_path / prefix
        result = run_svi(svi, KEY, 6, Y, path=path, progress_bar=False)
        losses.add(tuple(result.losses.tolist()))
        with _store.RunStore.open(path) as store:
            programs.add(store.fingerprint["program"])
    assert len(programs) == len(losses) == 1
    reference = svi.run(KEY, 6, Y, progress_bar=False)
    np.testing.assert_allclose(reference.losses, result.losses, rtol=1e-6)
    assert result.params.keys() == reference.params.keys()
