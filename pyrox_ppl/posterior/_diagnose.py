"""diagnose: whether a posterior can be trusted, judged by functions, not weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xarray as xr

import pyrox_ppl.posterior._checks as _checks
import pyrox_ppl.posterior._stats as _stats
from pyrox_ppl.posterior._check_guide import check_guide, num_random
from pyrox_ppl.posterior._check_members import check_members
from pyrox_ppl.posterior._check_sampler import check_sampler
from pyrox_ppl.posterior._diagnosis import Check, Diagnosis
from pyrox_ppl.posterior._functions import (
    FEWEST_DRAWS,
    function_statistics,
)
from pyrox_ppl.posterior._losses import check_losses
from pyrox_ppl.posterior._summary import may_be_chains, summary
from pyrox_ppl.posterior._unadjusted import check_unadjusted
from pyrox_ppl.prediction._predict import bind_call


def diagnose(
    tree: xr.DataTree,
    model: Any = None,
    *inputs: Any,
    call: Callable[..., Any] | None = None,
    name: str | None = None,
    sites: Sequence[str] | None = None,
    params: Mapping[str, Any] | None = None,
    loo: bool = True,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Check a posterior: what is fine, what is not, and what to try.

    The weights of a network have symmetries: two chains that found the same function
    may sit at permuted or flipped weights, and the large R-hat of these weights means
    nothing. So R-hat, ESS and Monte Carlo error are computed for *functions*:

    - ``diagnose(tree, field, x, z)``: the values of a module at probe inputs, or of
      any function of it, ``call=lambda net, x: jax.nn.softmax(jax.vmap(net)(x))``;
    - ``diagnose(tree, model, x, z)``: the deterministic sites of a model there;
    - ``diagnose(tree)``: the deterministic sites in the tree (except parameters in
      another form, such as a non-centred prior makes), else the pointwise log
      likelihoods.

    The functions are evaluated block by block: memory holds one block of probes times
    all draws. A draw or a value that is NaN or infinite always fails.

    Other checks: divergences, the energy fraction (E-BFMI), and how many trajectories
    of NUTS stopped at the largest depth of its tree; for a guide the PSIS k of its
    importance weights in float64, and whether the ELBO has stopped rising. In more than
    30 dimensions a large k is only noted: small misfits of all dimensions add up to it,
    for good guides as for bad ones, and the calibration of held-out rows decides
    (:func:`~pyrox_ppl.calibration`). For a kernel that accepts every step (``MCLMC``,
    ``SGLD``, ``SGHMC``), the size of its energy errors; it says that the bias of such
    draws cannot be seen in them.

    PSIS-LOO, with Pareto k, leaves out one row after the other of those that the fit
    has seen, so it is meaningless for a tree of held-out rows. Such a tree of an
    ``MCMC`` gets none; results of SVI do not know their rows, so there the report
    states the condition.

    R-hat and ESS judge Markov chains. The tree's ``attrs["inference"]`` says what the
    draws are. ``"MCMC"``: Markov chains. ``"SVI"``: independent draws of a guide, about
    which R-hat and ESS say nothing, so they are left out. ``"draws"``: a dictionary of
    unknown origin; if it has a single row of draws, a large R-hat or a small ESS is
    reported as not known, and if it is grouped by chain, its rows are taken to be
    chains. ``"ensemble"``: the members of :func:`~pyrox_ppl.infer.run_ensemble`, fits
    that need not agree; how far they differ is reported, and two members that are the
    same function fail. Any other value: not Markov chains.

    Args:
        tree: A DataTree of :func:`~pyrox_ppl.to_datatree`.
        model: The module, as the model read it, or the model.
        *inputs: Probe inputs: a few dozen points where the function matters.
        call: How to call a module with the inputs, as for :func:`~pyrox_ppl.predict`:
            with the state of its layers, in inference mode, a softmax on top. Dropout
            that is left on blurs the function by noise: switch it off.
        name: The root of the module's names, as for `modules_from_draws`.
        sites: The sites of a model to look at; by default the deterministic ones.
        params: Trained values that are not in the tree.
        loo: Whether to compute PSIS-LOO, which takes about a millisecond per
            observation.
        batch_size: How many probes are held for all draws at a time.
        **kwargs: Keyword arguments of the module or model.

    Returns:
        A `Diagnosis` to print; its ``ok``, ``failed`` and ``checks`` are for programs.

    Raises:
        TypeError: If `tree` is not a DataTree, or if `model`, or `call`, cannot be
            called with the inputs.
        ValueError: If the tree has no posterior, or the draws do not match the module.

    References:
        Vehtari et al., "Rank-Normalization, Folding, and Localization: An Improved
        R-hat for Assessing Convergence of MCMC", Bayesian Analysis 2021. Yao et al.,
        "Yes, but did it work?", ICML 2018. Dhaka et al., "Challenges and Opportunities
        in High-dimensional Variational Inference", NeurIPS 2021. Betancourt,
        "Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo",
        2016.

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
    _stats.check_axes("the draws of the posterior", sizes)
    chains, draws = sizes["chain"], sizes["draw"]
    inference = tree.attrs.get("inference")
    is_point = bool(tree.attrs.get("point_estimate"))
    are_members = inference == "ensemble" and chains > 1
    are_chains = may_be_chains(tree)
    stats = _stats.group(tree, "sample_stats")
    bfmi, pareto_k, loss, results = None, None, None, {}
    checks = _checks.check_finite_draws(tree)
    bound = None
    given = (call, name, sites)
    if model is not None:
        if call is None and not callable(model):
            raise TypeError(
                "diagnose takes a module or a model after the tree, diagnose(tree, "
                f"module, *probe_inputs), got {type(model).__name__}. For several "
                "modules say how to call them: call=lambda modules, *inputs: ..."
            )
        bound = bind_call(model, inputs, kwargs, params, name, sites, call)
    elif inputs or kwargs or params or any(argument is not None for argument in given):
        raise ValueError(
            "probe inputs need the module or model to evaluate there: diagnose(tree, "
            "module, *inputs)."
        )
    functions = function_statistics(
        tree, bound, sites, batch_size, are_chains, are_members
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
        values = _checks.check_values(functions)
        # A single draw cannot differ from draw to draw.
        several = chains * draws > 1 and not is_point
        checks += [c for c in values if several or functions.not_finite.any()]
        checks += check_members(functions)
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
            checks += _checks.check_convergence(functions, chains, inference != "draws")
    # A tree that was joined by hand, or made by ArviZ, does not say what it is.
    is_sampled = inference == "MCMC" or (inference is None and "diverging" in stats)
    if is_sampled and "sample_stats" in tree.children:
        if tree.attrs.get("unadjusted"):
            checks += check_unadjusted(stats, tree.attrs)
        else:
            more, bfmi = check_sampler(stats, tree.attrs)
            checks += more
    if inference == "SVI" and not is_point:
        posterior = _stats.group(tree, "posterior")
        check, pareto_k = check_guide(stats, num_random(posterior))
        checks.append(check)
    if "optimization" in tree.children:
        losses = _stats.group(tree, "optimization")["loss"]
        loss = losses.transpose(..., "step").values
        is_early = "best_epoch" in tree.attrs
        kept = (tree.attrs["best_epoch"], tree.attrs["epochs"]) if is_early else None
        checks.append(check_losses(loss, kept))
    if loo and not is_point and "log_likelihood" in tree.children and draws >= 20:
        more, results = _checks.check_loo(tree)
        checks += more
    kind = tree.attrs.get("kernel") or tree.attrs.get("guide") or "Draws"
    unit = "member" if inference == "ensemble" else "chain"
    plural = unit if chains == 1 else f"{unit}s"
    return Diagnosis(
        title=f"{kind}: {chains} {plural} of {draws} draw{'s' if draws != 1 else ''}",
        chains=chains,
        checks=tuple(checks),
        functions=functions if are_chains else None,
        distances=None if functions is None else functions.distances,
        table=summary(tree),
        loo=results,
        bfmi=bfmi,
        pareto_k=pareto_k,
        loss=loss,
    )
