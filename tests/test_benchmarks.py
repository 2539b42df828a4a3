"""The benchmarks of whole data sets: small runs, which continue when killed."""

import importlib
import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Import a benchmark, whose report then goes to a temporary folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name):
        side_by_side = importlib.import_module("side_by_side")
        monkeypatch.setattr(side_by_side, "OUTPUT", tmp_path / "report")
        return importlib.import_module(name)

    return load


def write_uci(folder, rows=24):
    """Two inputs, one constant column, and a target in other units; two splits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)) * [2.0, 0.0, 5.0] + 7.0
    y = 30.0 + 4.0 * x[:, 0] + rng.normal(size=rows)
    order = rng.permutation(rows)
    for place in ("uci", "uci-gap"):
        home = folder / place / "toy"
        home.mkdir(parents=True)
        for number in range(2):
            parts = np.split(np.roll(order, number), [rows - 6])
            for name, part in zip(("train", "test"), parts, strict=True):
                np.savetxt(home / f"index_{name}_{number}.txt", part, fmt="%d")
    home = folder / "uci" / "toy"
    np.savetxt(home / "data.txt", np.column_stack([x, y]))
    np.savetxt(home / "index_features.txt", [0, 1, 2], fmt="%d")
    np.savetxt(home / "index_target.txt", [3], fmt="%d")
    return x, y


def test_a_split_is_standardised_by_its_training_rows_alone(load, tmp_path):
    _, y = write_uci(tmp_path)
    split = load("uci_posteriors").Split(tmp_path, "toy-gap", 1)
    inputs, target = (np.asarray(part, float) for part in split.train)
    np.testing.assert_allclose(inputs.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(inputs.std(0), [1.0, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose([target.mean(), target.std()], [0.0, 1.0], atol=1e-6)
    parts = [
        np.loadtxt(tmp_path / f"uci-gap/toy/index_{part}_1.txt", dtype=int)
        for part in ("train", "test")
    ]
    seen, new = (y[part] for part in parts)
    expected = (new - seen.mean()) / seen.std()
    np.testing.assert_allclose(split.test[1], expected, rtol=1e-5)
    assert split.unit == pytest.approx(seen.std())


def test_a_set_that_is_not_there_is_named(load, tmp_path):
    uci = load("uci")
    with pytest.raises(FileNotFoundError, match=r"no splits of \['yacht'\]"):
        uci.main(uci.parse([str(tmp_path), "--sets", "yacht", "--kept", str(tmp_path)]))


def test_rows_held_out_for_a_choice_are_training_rows(load, tmp_path):
    write_uci(tmp_path)
    whole = load("uci_posteriors").Split(tmp_path, "toy", 0)
    split = load("uci_posteriors").Split(tmp_path, "toy", 0, validate=0.25)
    sizes = [len(target) for _, target in split.rows]
    assert sum(sizes) == len(whole.train[1])
    assert sizes[1] == round(0.25 * sum(sizes))


def test_a_mixture_scores_as_the_density_in_the_units_of_the_data(load):
    uci, unit = load("uci"), 5.0
    y, laws = np.array([0.3, -1.2, 2.0]), [stats.norm(0.0, 1.0), stats.norm(0.5, 2.0)]
    parts = [
        {
            "loo": law.logpdf(y).tolist(),
            "log_score": law.logpdf(y).tolist(),
            "error": (law.mean() - y).tolist(),
            "pit": law.cdf(y).tolist(),
            "unit": unit,
            "seconds": 1.0,
            "gradient_evaluations": 10,
        }
        for law in laws
    ]
    row = uci.mix(parts, stacks=True)
    a, b = row["weights"]

    def density(value):
        return sum(
            w * stats.norm(unit * law.mean(), unit * law.std()).pdf(value)
            for w, law in zip((a, b), laws, strict=True)
        )

    assert row["log likelihood"] == pytest.approx(
        np.log(density(unit * y)).mean(), abs=2e-3
    )
    error = unit * (a * 0.0 + b * 0.5 - y)
    assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-2)
    assert (row["seconds"], row["gradients"]) == (2.0, 20)
    # A row outside the central 90 % of the first law, which weighs all.
    alone = uci.mix([parts[0] | {"pit": [0.5, 0.02, 0.96]}], stacks=False)
    assert alone["coverage"] == pytest.approx(1 / 3)
    assert uci.mix(parts, stacks=False)["weights"] == [0.5, 0.5]


def test_stacking_weights_are_the_best_on_a_grid(load):
    rng = np.random.default_rng(1)
    scores = stats.norm.logpdf(rng.normal(size=40), [[0.0], [1.0]], [[0.5], [1.5]])
    weights = load("uci").stacking_weights(scores)
    grid = np.linspace(0.0, 1.0, 10001)
    means = [np.log([w, 1 - w] @ np.exp(scores)).mean() for w in grid[1:-1]]
    assert weights[0] == pytest.approx(grid[1 + int(np.argmax(means))], abs=1e-3)
    assert 0.05 < weights[0] < 0.95


@pytest.mark.slow
@pytest.mark.rank_promotion
def test_uci_measures_what_is_missing_and_prints_a_table(
    load, tmp_path, monkeypatch, capsys
):
    write_uci(tmp_path)
    uci, posteriors = load("uci"), load("uci_posteriors")
    monkeypatch.setattr(posteriors, "WIDTH", 3)
    monkeypatch.setattr(posteriors, "MEMBERS", 2)
    small = ["--sets", "toy", "--warmup", "10", "--draws", "30"]
    small += ["--activations", "tanh"]
    common = [str(tmp_path), *small, "--kept", str(tmp_path / "kept")]
    uci.main(uci.parse([*common, "--splits", "0"]))
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1

    measured = []

    def fit(*arguments):
        measured.append(arguments)
        raise KeyboardInterrupt  # as if it was killed

    with monkeypatch.context() as patch:
        patch.setattr(posteriors.Fitter, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            uci.main(uci.parse(common))
        assert len(measured) == 1, "the first split is there, the second is not"
        uci.main(uci.parse([*common, "--table"]))
    rows = json.loads((tmp_path / "report" / "uci.json").read_text())["rows"]
    assert [(row["recipe"], row["splits"]) for row in rows] == [("tanh", 1)]
    assert "log likelihood" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.rank_promotion
def test_uci_runs_every_method(load, tmp_path, monkeypatch):
    write_uci(tmp_path)
    uci, posteriors = load("uci"), load("uci_posteriors")
    monkeypatch.setattr(posteriors, "WIDTH", 3)
    monkeypatch.setattr(posteriors, "MEMBERS", 2)
    small = ["--sets", "toy-gap", "--splits", "0", "--warmup", "10", "--draws", "30"]
    ways = ["--methods", "mclmc", "ensemble", "--likelihoods", "input_dependent"]
    kept = ["--activations", "tanh", "--kept", str(tmp_path / "kept")]
    uci.main(uci.parse([str(tmp_path), *small, *ways, *kept]))
    rows = json.loads((tmp_path / "report" / "uci.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["ensemble", "mclmc"]
    assert all(row["gradients"] > 0 for row in rows)


def airfoil_arguments(folder):
    """A small setting, and rows in the file's format."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    table = np.column_stack([x, 3.0 * x[:, 0] + 0.1 * rng.normal(size=40)])
    header = {"header": "a,b,target", "comments": ""}
    np.savetxt(folder / "airfoil.csv", table, delimiter=",", **header)
    small = "--members 2 --steps 40 --warmup 30 --samples 40 --draws 20 --width 3"
    kept = ["--depth", "1", "--seeds", "0", "--kept", str(folder / "kept")]
    return [str(folder), *small.split(), *kept, "--bde", sys.executable]


def test_an_absent_bde_is_skipped_with_the_command_that_installs_it(
    load, tmp_path, capsys
):
    airfoil = load("airfoil")
    args = airfoil.parse(airfoil_arguments(tmp_path))
    assert airfoil.run_bde(sys.executable, args, seed=0) is None
    assert "pip install sklearn-contrib-bde" in capsys.readouterr().out


def test_airfoil_rows_are_standardised_by_those_it_learns_from(load, tmp_path):
    airfoil_arguments(tmp_path)
    for share, sizes in ((0.0, (32, 8)), (0.25, (24, 8))):
        train, test = load("airfoil").read(tmp_path / "airfoil.csv", share)
        assert (len(train[1]), len(test[1])) == sizes
        moments = [np.mean(train[1]), np.std(train[1]), np.mean(train[0])]
        np.testing.assert_allclose(moments, [0.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.rank_promotion
def test_airfoil_measures_what_is_missing(load, tmp_path, monkeypatch):
    airfoil, arguments = load("airfoil"), airfoil_arguments(tmp_path)
    airfoil.main(airfoil.parse(arguments))

    def measure(*arguments, **kwargs):
        raise AssertionError("a seed that is there is not measured again")

    monkeypatch.setattr(airfoil.Fitter, "measure", measure)
    airfoil.main(airfoil.parse(arguments))
    (row,) = json.loads((tmp_path / "report" / "airfoil.json").read_text())["rows"]
    assert row["gradients"] == 2 * (40 + 2 * (30 + 40))


def test_airfoils_network_is_equinox_own_on_all_rows_at_once(load):
    sizes, key, x = (3, 4, 2), jax.random.key(0), jnp.ones((5, 3)).cumsum(0)
    ours = load("airfoil").make_network(*sizes, "silu", key)(x.T)
    network = eqx.nn.MLP(3, 2, 4, 2, activation=jax.nn.silu, key=key)
    np.testing.assert_allclose(ours, jax.vmap(network)(x).T, rtol=1e-5)


def test_the_score_of_airfoil_is_that_of_a_gaussian(load):
    rng = np.random.default_rng(0)
    mean, std, y = rng.normal(size=(3, 50))
    row = load("airfoil").score(mean, np.abs(std) + 0.1, y)
    law = stats.norm(mean, np.abs(std) + 0.1)
    assert row["nll"] == pytest.approx(-law.logpdf(y).mean())
    inside = np.abs(law.cdf(y) - 0.5) < 0.45
    assert row["coverage"] == pytest.approx(inside.mean())
