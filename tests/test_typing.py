"""A user's file type-checks against the public API, and a wrong use is reported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyrox_ppl

ROOT = Path(pyrox_ppl.__file__).parent.parent

USER_FILE = """
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyrox_ppl as px
from pyrox_ppl import infer, nn, priors
from pyrox_ppl.nn import SIREN, AffineModulation, ConditionedINR, HyperNetwork

key = jax.random.key(0)
inner = SIREN.init(1, 8, 1, depth=3, key=key)
field = ConditionedINR.init(
    inner, conditioner_cls=AffineModulation, cond_dim=1, key=key
)
mlp = eqx.nn.MLP(1, 1, 8, 1, key=key)
generator = HyperNetwork.init(mlp, 2, key=key)
rff = nn.RBFFourierFeatures.init(1, 8, key=key, lengthscale=0.5)


def by_shape(parameter: px.Parameter) -> dist.Distribution | None:
    return dist.Normal(0.0, 1.0) if parameter.shape else None


def model(x: jax.Array, z: jax.Array, y: jax.Array | None = None) -> None:
    with px.bayesianize(prior_std=0.5), px.learn(where=px.is_backbone):
        f = field(x, z)
    with px.bayesianize(prior={"*.bias": priors.normal(0.1), "*": priors.fan_in()}):
        with px.scope("trend"):
            net = px.bind(mlp, "mlp")
    f = f + jax.vmap(net)(x)
    with px.amortize(generator=generator, context=z):
        f = f + jax.vmap(px.bind(mlp, "generated"))(x)
    numpyro.sample("y", dist.Normal(f, 0.1), obs=y)


x, z, y = jnp.zeros((4, 1)), jnp.zeros(1), jnp.zeros((4, 1))
wrapped = px.bayesianize(model, prior=by_shape, where=["*.weight", "*.bias"])
mcmc = MCMC(NUTS(wrapped), num_warmup=5, num_samples=5)
compiled = infer.CompiledMCMC(infer.FlatNUTS(model), num_warmup=5, num_samples=5)
compiled.run(key, x, z, y=y)
plain = SVI(model, AutoNormal(model), optax.adam(1e-3), Trace_ELBO())
svi = infer.CompiledSVI(model, AutoNormal(model), optax.adam(1e-3), Trace_ELBO())
loader = px.infer.MinibatchLoader((x, y), 2, rng_key=key)
posterior = px.to_datatree(mcmc, x, z, y=y)
mean: jax.Array = px.predict(mlp, posterior, x).mean
px.diagnose(posterior)
comparison: px.Comparison = px.compare({"NUTS": posterior, "SVI": posterior})
px.plot_comparison(comparison).savefig("comparison.pdf")
temperature = px.recalibrate(posterior, "temperature", site="y").apply(mean)
rows: np.ndarray = px.most_uncertain(posterior, 3)
accuracy: np.ndarray = px.accuracy_rejection_curve(posterior).accuracy
px.plot_fit(None, x, predictive=px.predict(model, posterior, x)["y"], tree=posterior)
px.save("fit.nc", posterior, mlp, name="mlp")
name: str | None = px.load("fit.nc").name
print(px.explain(model, x, z), px.__version__)
px.show_versions()
"""

# A slip each, in a name, an argument or what is made of a result.
SLIPS = (
    "px.bayesianise(model)",
    "px.bayesianize(prior_sd=0.5)",
    "px.learn(where=3)",
    "px.amortize(generator=generator)",
    "px.scope(1)",
    "px.bind(mlp, name=0)",
    "SIREN.init(1, 8, 1, depth=3)",
    'nn.FiLM.init("8", 2, key=key)',
    'priors.normal("0.1")',
    "px.infer.FlatNuts(model)",
    "infer.MinibatchLoader((x, y), 2, key)",
    "px.posterior.to_datatre(mcmc)",
    "px.predict(mlp)",
    "bound: int = px.bind(mlp)",
    "px.load('fit.nc').tree",
    "versions: str = px.show_versions()",
    "px.compare([posterior])",
    'px.recalibrate(posterior, "temprature")',
    'px.most_uncertain(posterior, "3")',
    "px.accuracy_rejection_curve(posterior).accuracies",
    "px.plot_comparison(posterior)",
)


@pytest.fixture(scope="module")
def errors_by_line(tmp_path_factory) -> dict[int, str]:
    """What pyright says of the user's file with all slips at its end."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.py").write_text("\n".join([USER_FILE, *SLIPS, ""]))
    config = {"include": ["user.py"], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    # On the interpreter's path the package counts as installed: py.typed is heeded.
    pyright = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    checked = subprocess.run(
        [*pyright, "--outputjson", "--project", folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(checked.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, checked.stderr
    return {
        found["range"]["start"]["line"]: found["message"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    }


def test_a_right_file_has_no_errors(errors_by_line):
    end = len(USER_FILE.splitlines()) + 1
    assert not {line: e for line, e in errors_by_line.items() if line < end}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_reported(slip, errors_by_line):
    assert len(USER_FILE.splitlines()) + 1 + SLIPS.index(slip) in errors_by_line


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "pyrox_ppl" / "py.typed").is_file()
