"""diagnose: whether a posterior can be trusted, asked of functions, not of weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import xarray as xr

import pyrox_ppl.posterior._checks as _checks
import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._diagnosis import Check, Diagnosis
from pyrox_ppl.posterior._functions import (
    FEWEST_DRAWS,
    Functions,
    of_model,
    of_module,
    of_tree,
)
from pyrox_ppl.posterior._summary import summary


def diagnose(
    tree: xr.DataTree,
    model: Callable | None = None,
    *inputs: Any,
    name: str | None = None,
    sites: Sequence[str] | None = None,
    params: Mapping[str, Any] | None = None,
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
    deterministic sites (parameters in another form, as a non-centred prior makes them,
    are none), else of its pointwise log likelihoods. The functions are evaluated block
    by block: never more than a block of probes times all draws is held. A draw or a
    value that is NaN or infinite is never fine.

    Besides: divergences, the energy fraction (E-BFMI), PSIS-LOO with Pareto k; for a
    guide the PSIS k of its importance weights in float64, and whether the ELBO has
    stopped rising.

    R-hat and ESS are about Markov chains. The tree's ``attrs["inference"]`` says what
    the draws are: of ``"MCMC"``, of ``"SVI"`` (draws of a guide are independent: R-hat
    and ESS say nothing about it and are left out), or ``"draws"``, a dictionary of
    which nothing is known. Of such a dictionary in one row, a large R-hat or a small
    ESS is reported as not known; grouped by chain, it is taken at its word. With
    anything else there, ``"ensemble"`` say, the draws are judged as no chains.

    Args:
        tree: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        model: The module, as the model read it, or the model.
        *inputs: Probe inputs: some dozens of places where the function matters.
        name: The root of the module's names, as for `modules_from_draws`.
        sites: The sites of a model to look at; by default the deterministic ones.
        params: The trained values of what was learned, if they are not in the tree.
        loo: Whether to compute PSIS-LOO, which takes about a millisecond an
            observation.
        batch_size: How many probes are held for all draws at a time.
        **kwargs: Keyword arguments of the module or model.

    Returns:
        A `Diagnosis`: ``print`` it; ``ok``, ``failed`` and ``checks`` say the same to a
        program.

    Raises:
        TypeError: If `tree` is no DataTree, or `model` nothing that can be called.
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
    _stats.check_tree(tree, "diagnose", "posterior")
    sizes = _stats.group(tree, "posterior").sizes
    chains, draws = sizes["chain"], sizes["draw"]
    inference = tree.attrs.get("inference")
    is_point = bool(tree.attrs.get("point_estimate"))
    are_chains = inference in (None, "MCMC", "draws") and not is_point
    stats = _stats.group(tree, "sample_stats")
    bfmi, pareto_k, loss, results = None, None, None, {}
    checks = _checks.of_finite_draws(tree)
    functions = _functions(
        tree, model, inputs, kwargs, name, sites, params, batch_size, are_chains
    )
    if is_point:
        checks.append(
            Check(
                "spread",
                None,
                "a point estimate has no draws to diagnose",
                "a guide that is random (AutoNormal), or NUTS.",
            )
        )
    if functions is not None:
        values = _checks.of_values(functions)
        # Of one draw nothing is told by its not changing.
        several = chains * draws > 1 and not is_point
        checks += [c for c in values if several or functions.not_finite.any()]
    if are_chains:
        if functions is None:
            checks.append(
                Check(
                    "R-hat",
                    None,
                    "there is no function to look at",
                    "diagnose(tree, module, *probe_inputs).",
                )
            )
        elif draws < FEWEST_DRAWS:
            checks.append(Check("R-hat", None, f"{draws} draws are too few", "more."))
        else:
            checks += _checks.of_functions(functions, chains, inference != "draws")
    if inference == "MCMC" and "sample_stats" in tree.children:
        more, bfmi = _checks.of_sampler(stats)
        checks += more
    if inference == "SVI" and not is_point:
        check, pareto_k = _checks.of_guide(stats)
        checks.append(check)
    if "optimization" in tree.children:
        losses = _stats.group(tree, "optimization")["loss"]
        loss = losses.transpose(..., "step").values
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
        functions=functions if are_chains else None,
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
    params: Mapping[str, Any] | None,
    batch_size: int | None,
    are_chains: bool,
) -> Functions | None:
    if model is None:
        if inputs or kwargs or params or name is not None or sites is not None:
            raise ValueError(
                "probe inputs are those of a module or model: diagnose(tree, module, "
                "*inputs)."
            )
        return of_tree(tree, are_chains)
    if isinstance(model, eqx.Module):
        if sites is not None:
            raise ValueError(
                f"sites are those of a model, and {type(model).__name__} is a module."
            )
        return of_module(
            model, tree, inputs, kwargs, name, params, batch_size, are_chains
        )
    if not callable(model):
        raise TypeError(
            "diagnose takes a module or a model after the tree, diagnose(tree, module, "
            f"*probe_inputs), got {type(model).__name__}."
        )
    if name is not None:
        raise ValueError("name is the root of a module's names, and this is a model.")
    return of_model(model, tree, inputs, kwargs, sites, params, batch_size, are_chains)
