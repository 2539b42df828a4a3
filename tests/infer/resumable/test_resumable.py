"""run_mcmc: NumPyro's draws, whatever fails on the way; errors that say what."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import pyrox_ppl as px
from pyrox_ppl.infer import run_mcmc
from pyrox_ppl.infer.resumable import _store

KEY = jax.random.key(3)
Y = np.array([0.3, 0.9, 1.4], np.float32)


class Died(BaseException):
    """What stands for the end of a process."""


def potential(z):
    return 0.5 * jnp.sum(z["a"] ** 2) + 0.5 * jnp.sum((z["b"] - z["a"].sum()) ** 2)


def model(y, scale=1.0):
    mean = numpyro.sample("group/mean", dist.Normal(0.0, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mean / spread)
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, scale * spread), obs=y)


def other_prior(y, scale=1.0):
    mean = numpyro.sample("group/mean", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mean / spread)
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, scale * spread), obs=y)


def starts(chains=1):
    one = {"a": jnp.zeros(2), "b": jnp.ones(3)}
    if chains == 1:
        return one
    return jax.tree.map(lambda leaf: jnp.stack([leaf + c for c in range(chains)]), one)


def make(kernel=None, **kwargs):
    settings = {"num_warmup": 10, "num_samples": 17, "progress_bar": False} | kwargs
    return MCMC(kernel or NUTS(potential_fn=potential), **settings)


def assert_same(mcmc, reference):
    assert jax.tree.structure(mcmc._states) == jax.tree.structure(reference._states)
    jax.tree.map(np.testing.assert_array_equal, mcmc._states, reference._states)
    for name, draws in reference.get_samples().items():
        np.testing.assert_array_equal(mcmc.get_samples()[name], draws)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        (
            {"num_chains": 2, "chain_method": "vectorized", "thinning": 3},
            ("num_steps", "adapt_state.step_size", "~z.b"),
        ),
        pytest.param(
            {"num_chains": 2, "chain_method": "sequential"},
            ("z.a",),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_draws_are_those_of_numpyro_bit_for_bit(tmp_path, settings, extra):
    start = starts(settings.get("num_chains", 1))
    reference = make(**settings)
    reference.run(KEY, extra_fields=extra, init_params=start)
    mcmc = run_mcmc(
        make(**settings),
        KEY,
        path=tmp_path / "run",
        segment=4,
        extra_fields=extra,
        init_params=start,
    )
    assert_same(mcmc, reference)


def test_a_failure_at_each_place_of_a_commit_changes_no_bit(tmp_path, monkeypatch):
    settings = {"num_samples": 24, "thinning": 2}
    reference = make(**settings)
    reference.run(KEY, init_params=starts())
    places = ["created", "state", "draws", "draws flushed", "manifest", "renamed"]
    for place in [*places, "committed"]:
        passed = []

        def reached(point, place=place, passed=passed):
            passed.append(point)
            # Not at the first commit, so that each attempt comes further.
            if point == place and passed.count(place) >= (place != "created") + 1:
                raise Died

        monkeypatch.setattr(_store, "reached", reached)
        with pytest.raises(Died):
            run_mcmc(
                make(**settings),
                KEY,
                path=tmp_path / "r",
                segment=1,
                init_params=starts(),
            )
    monkeypatch.undo()
    mcmc = run_mcmc(
        make(**settings), KEY, path=tmp_path / "r", segment=1, init_params=starts()
    )
    assert_same(mcmc, reference)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run of the model with sites, its kernel, and NumPyro's own."""
    path = tmp_path_factory.mktemp("resumable") / "run"
    kernel = NUTS(model)
    mcmc = run_mcmc(make(kernel), KEY, Y, path=path, segment=4)
    return path, kernel, mcmc


def content(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_model_with_sites_has_its_constrained_and_deterministic_values(begun):
    path, kernel, mcmc = begun
    reference = make(kernel)
    reference.run(KEY, Y)
    assert_same(mcmc, reference)
    assert {"group/mean", "spread", "ratio"} == set(mcmc.get_samples())
    before = content(path)
    assert_same(run_mcmc(make(kernel), KEY, Y, path=path, segment=4), reference)
    assert content(path) == before
    tree = px.to_datatree(mcmc, Y)
    assert tree["posterior"]["spread"].shape == (1, 17)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y": Y + 1e-6}, r"arguments of the model.*argument 0"),
        ({"scale": 2.0}, r"arguments of the model.*scale was absent"),
        ({"y": Y[:2]}, r"arguments of the model"),
        ({"key": jax.random.key(4)}, "the keys"),
        ({"mcmc": {"num_chains": 2, "chain_method": "vectorized"}}, "num_chains was 1"),
        ({"mcmc": {"num_samples": 18}}, "num_samples was 17 and is 18"),
        ({"segment": 5}, "segment was 4 and is 5"),
        ({"extra_fields": ("num_steps",)}, "fields was"),
        ({"kernel": NUTS(other_prior)}, "computations of the model"),
        ({"kernel": NUTS(model, max_tree_depth=3)}, "computations of the model"),
        ({"kernel": NUTS(model, step_size=0.5)}, "initial states"),
    ],
)
def test_another_run_is_refused_and_the_files_are_left_alone(begun, change, told):
    path, kernel, _ = begun
    change = {"y": Y, "key": KEY, "segment": 4, "kernel": kernel, "mcmc": {}} | change
    mcmc = make(change.pop("kernel"), **change.pop("mcmc"))
    before = content(path)
    with pytest.raises(ValueError, match=told):
        run_mcmc(mcmc, change.pop("key"), change.pop("y"), path=path, **change)
    assert content(path) == before


def test_a_site_more_is_reported_by_name(begun):
    path, _, _ = begun

    def more(y):
        model(y)
        numpyro.sample("slope", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="slope was absent and is sample Normal"):
        run_mcmc(make(NUTS(more)), KEY, Y, path=path, segment=4)


def test_another_environment_is_refused_unless_one_says_so(begun, monkeypatch):
    path, kernel, mcmc = begun
    monkeypatch.setattr(numpyro, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=r"numpyro was .* and is 0\.0\.1"):
        run_mcmc(make(kernel), KEY, Y, path=path, segment=4)
    again = run_mcmc(
        make(kernel), KEY, Y, path=path, segment=4, allow_other_environment=True
    )
    assert_same(again, mcmc)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("manifest.json", "manifest.json is damaged"),
        ("draws.zarr/z/spread/c.0.2", "block 2 of 5"),
        ("draws.zarr/diverging/zarr.json", "diverging"),
        ("state-*.npz", r"state-\d+.npz is truncated or altered"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "removed"])
def test_damage_is_reported_and_undone_by_restoring(begun, file, told, damage):
    path, kernel, mcmc = begun
    victim = sorted(path.glob(file), key=lambda p: (len(p.name), p.name))[-1]
    whole = victim.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 0x55
    if damage == "removed":
        victim.unlink()
    else:
        victim.write_bytes(whole[:-7] if damage == "truncated" else bytes(altered))
    before = content(path)
    expected = ValueError if damage != "removed" else (ValueError, KeyError)
    with pytest.raises(expected, match=None if damage == "removed" else told):
        run_mcmc(make(kernel), KEY, Y, path=path, segment=4)
    assert content(path) == before
    victim.write_bytes(whole)
    assert_same(run_mcmc(make(kernel), KEY, Y, path=path, segment=4), mcmc)
