"""diagnose: whether a posterior can be trusted, asked of functions, not of weights."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import xarray as xr

import pyrox_ppl.posterior._checks as _checks
import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._functions import Functions, of_model, of_module, of_tree
from pyrox_ppl.posterior.diagnosis import Check, Diagnosis
from pyrox_ppl.posterior.summary import summary


def diagnose(
    tree: xr.DataTree,
    model: Callable | None = None,
    *inputs: Any,
    name: str | None = None,
    sites: Sequence[str] | None = None,
    loo: bool = True,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Say what is fine about a posterior, what is not, and what to try.

    The weights of a network have symmetries: two chains that found the same function
    may sit at permuted or flipped weights, and their R-hat is then large and means
    nothing. So R-hat, ESS and Monte Carlo error are those of *functions*: of a module's
    values at probe inputs (``diagnose(tree, field, x, z)``), of a model's deterministic
    sites there (``diagnose(tree, model, x, z)``), or, with the tree alone, of its
    deterministic sites, else of its pointwise log likelihoods. The functions are
    evaluated block by block: never more than a block of probes times all draws is held.

    Besides: divergences, the energy fraction (E-BFMI), PSIS-LOO with Pareto k; for a
    guide the PSIS k of its importance weights in float64, and whether the ELBO has
    stopped rising. Draws of a guide are independent of each other, so R-hat and ESS say
    nothing about it and are left out.

    Args:
        tree: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        model: The module, as the model read it, or the model.
        *inputs: Probe inputs: some dozens of places where the function matters.
        name: The root of the module's names, as for `posterior_modules`.
        sites: The sites of a model to look at; by default the deterministic ones.
        loo: Whether to compute PSIS-LOO, which takes about a millisecond an
            observation.
        batch_size: How many probes are held for all draws at a time.
        **kwargs: Keyword arguments of the module or model.

    Returns:
        A `Diagnosis`: ``print`` it; ``ok``, ``failed`` and ``checks`` say the same to a
        program.

    Raises:
        ValueError: If the tree has no posterior, or the draws do not match the module.

    References:
        Vehtari et al., "Rank-Normalization, Folding, and Localization: An Improved
        R-hat for Assessing Convergence of MCMC", Bayesian Analysis 2021. Yao et al.,
        "Yes, but did it work?", ICML 2018. Betancourt, "Diagnosing Suboptimal Cotangent
        Disintegrations in Hamiltonian Monte Carlo", 2016.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, pyrox_ppl as px
        >>> linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
        >>> weights = jax.random.normal(jax.random.key(1), (4, 500, 1, 1))
        >>> tree = px.to_datatree({"linear.weight": weights}, batch_ndims=2)
        >>> px.diagnose(tree, linear, jnp.linspace(0.5, 1.0, 5)[:, None]).ok
        True
    """
    if "posterior" not in tree.children:
        raise ValueError(
            "diagnose needs the group 'posterior', and this tree has "
            f"{sorted(tree.children)}."
        )
    sizes = _stats.group(tree, "posterior").sizes
    chains, draws = sizes["chain"], sizes["draw"]
    is_guide = tree.attrs.get("inference") == "SVI"
    is_point = bool(tree.attrs.get("point_estimate"))
    stats = _stats.group(tree, "sample_stats")
    checks: list[Check] = []
    functions: Functions | None = None
    bfmi, pareto_k, loss, results = None, None, None, {}
    if is_point:
        checks.append(
            Check(
                "spread",
                None,
                "a point estimate has no draws to diagnose",
                "a guide that is random (AutoNormal), or NUTS.",
            )
        )
    elif not is_guide:
        functions = _functions(tree, model, inputs, kwargs, name, sites, batch_size)
        if functions is None:
            checks.append(
                Check(
                    "R-hat",
                    None,
                    "there is no function to look at",
                    "diagnose(tree, module, *probe_inputs).",
                )
            )
        elif draws < 8:
            checks.append(Check("R-hat", None, f"{draws} draws are too few", "more."))
        else:
            checks += _checks.of_functions(functions, chains)
        if "sample_stats" in tree.children and tree.attrs.get("inference") == "MCMC":
            more, bfmi = _checks.of_sampler(stats)
            checks += more
    else:
        check, pareto_k = _checks.of_guide(stats)
        checks.append(check)
    if "optimization" in tree.children:
        loss = _stats.group(tree, "optimization")["loss"].values
        checks.append(_checks.of_losses(loss))
    if loo and not is_point and "log_likelihood" in tree.children and draws >= 20:
        more, results = _checks.of_loo(tree)
        checks += more
    kind = tree.attrs.get("kernel") or tree.attrs.get("guide") or "Draws"
    plural = "chain" if chains == 1 else "chains"
    return Diagnosis(
        title=f"{kind}: {chains} {plural} of {draws} draws",
        chains=chains,
        checks=tuple(checks),
        functions=functions,
        table=summary(tree),
        loo=results,
        bfmi=bfmi,
        pareto_k=pareto_k,
        loss=loss,
    )


def _functions(
    tree: xr.DataTree,
    model: Callable | None,
    inputs: tuple,
    kwargs: dict[str, Any],
    name: str | None,
    sites: Sequence[str] | None,
    batch_size: int | None,
) -> Functions | None:
    if model is None:
        if inputs or kwargs or name is not None or sites is not None:
            raise ValueError(
                "probe inputs are those of a module or model: diagnose(tree, module, "
                "*inputs)."
            )
        return of_tree(tree)
    if isinstance(model, eqx.Module):
        return of_module(model, tree, inputs, kwargs, name, batch_size)
    return of_model(model, tree, inputs, kwargs, sites, batch_size)
