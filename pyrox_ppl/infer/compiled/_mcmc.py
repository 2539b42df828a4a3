"""CompiledMCMC: NumPyro's MCMC as compiled programs that are remembered."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from jax.core import Tracer
from numpyro.infer import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.util import is_prng_key

from pyrox_ppl._cost import Cost, keep_cost
from pyrox_ppl._numpyro import (
    SET_BY_KERNELS,
    AbstractFlattenedMCMC,
    init_strategy,
    record_run,
    take_collection,
)
from pyrox_ppl.infer.compiled._arguments import explain_tracing_errors
from pyrox_ppl.infer.compiled._chains import (
    check_init_params,
    choose_method,
    replicate,
    spread,
)
from pyrox_ppl.infer.compiled._fields import choose_fields
from pyrox_ppl.infer.compiled._nuts_program import (
    Carry,
    ChainStart,
    MCMCPrograms,
    Plan,
    Shared,
    Source,
    Valid,
)
from pyrox_ppl.infer.compiled._programs import Key
from pyrox_ppl.infer.kernels._vector_kernel import AbstractVectorKernel


class CompiledMCMC(AbstractFlattenedMCMC):
    r"""NumPyro's ``MCMC`` as two programs, compiled once.

    NumPyro finds initial values operation by operation (hundreds of compilations), and
    compiles again for each ``run``. This class compiles one program that finds initial
    values and one that warms up and samples. The arguments of the model are inputs of
    both, so a later ``run`` with arguments of the same shapes and types compiles
    nothing. The draws are those of NumPyro's ``MCMC`` with the same kernel, key and
    chain method, up to rounding, which chaos enlarges in a long run. A ``param`` site
    with a random initial value is drawn once per run, with the key of the first chain.
    Every method and attribute is NumPyro's.

    A program is used again if everything it depends on is the same:

    - array arguments by shape and dtype, and by which of them are one array;
    - numbers, strings and flags by type and value;
    - functions, callable objects, static fields and the model itself by all that they
      reach: closures, attributes, globals, modules, the environment.

    Pass what changes often as an argument, above all a NumPy array: JAX keeps the first
    contents of one that the model closes over. An object that cannot be inspected (a
    generator, a file) makes each run compile anew, with a warning.

    **Shapes**: of draws, ``(draw, *site)`` or ``(chain, draw, *site)``.

    **Sites**: those of the model.

    Args:
        sampler: A NumPyro ``NUTS`` or ``HMC``, or a kernel of ``pyrox_ppl.infer``,
            made from a model.
        num_warmup: Warm-up steps.
        num_samples: Draws per chain, before thinning.
        num_chains: The number of chains.
        thinning: Iterations per draw that is kept.
        postprocess_fn: As in NumPyro's ``MCMC``.
        chain_method: NumPyro's ``"parallel"`` (any number of chains that can be spread
            evenly over devices), ``"sequential"`` or ``"vectorized"``; a callable; or
            ``"auto"``: parallel where there are several devices for it, else
            vectorised on an accelerator and sequential on a CPU. The attribute
            ``chain_method`` and the progress bar say which one it is.
        progress_bar: Whether to show one.
        progress_rate: Iterations per update of the bar; a twentieth of all by default.

    Raises:
        TypeError: If the kernel is none of these. On ``run``, JAX's own error if the
            model's Python code needs the values of its array arguments.
        RuntimeError: On ``run``, if no initial values of finite density are found.
        ValueError: If an argument is out of range. On ``run``, if both the chains and
            an array are to be spread over devices, or if observations and their
            distribution broadcast each other.

    References:
        Phan, D., Pradhan, N. and Jankowiak, M. (2019). Composable Effects for Flexible
        and Accelerated Probabilistic Programming in NumPyro. arXiv:1912.11554.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from pyrox_ppl.infer import CompiledMCMC, FlatNUTS
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> mcmc = CompiledMCMC(FlatNUTS(model), num_warmup=20, num_samples=10,
        ...                     num_chains=2, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), x, y=2.0 * x)
        >>> mcmc.run(jax.random.key(1), x, y=3.0 * x)  # compiles nothing
        >>> mcmc.get_samples(group_by_chain=True)["slope"].shape
        (2, 10)
    """

    def __init__(
        self,
        sampler: MCMCKernel,
        *,
        num_warmup: int,
        num_samples: int,
        num_chains: int = 1,
        thinning: int = 1,
        postprocess_fn: Callable | None = None,
        chain_method: str | Callable = "auto",
        progress_bar: bool = True,
        progress_rate: int | None = None,
    ) -> None:
        known = isinstance(sampler, HMC | AbstractVectorKernel)
        if not known or getattr(sampler, "model", None) is None:
            raise TypeError(
                "CompiledMCMC takes NUTS, HMC or a kernel of pyrox_ppl.infer, made "
                f"from a model, got {sampler!r}: run other kernels with "
                "numpyro.infer.MCMC."
            )
        if not isinstance(num_chains, int) or num_chains < 1:
            raise ValueError(
                f"num_chains must be a positive integer, got {num_chains}."
            )
        if progress_rate is not None and progress_rate < 1:
            raise ValueError(f"progress_rate must be positive, got {progress_rate}.")
        super().__init__(
            sampler,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            thinning=thinning,
            postprocess_fn=postprocess_fn,
            chain_method="sequential",
            progress_bar=progress_bar,
            progress_rate=progress_rate,
            jit_model_args=True,
        )
        self.chain_method = choose_method(chain_method, num_chains)
        self._programs = MCMCPrograms()
        self._origin: Any = None

    def run(
        self,
        rng_key: Any,
        *args: Any,
        extra_fields: tuple[str, ...] | list[str] = (),
        init_params: Any = None,
        **kwargs: Any,
    ) -> None:
        """Run the chains and keep their draws; as NumPyro's ``MCMC.run``.

        Args:
            rng_key: A PRNG key, or one per chain.
            *args: The arguments of the model.
            extra_fields: Fields of the kernel's state to collect besides the draws.
            init_params: Unconstrained initial values by site, with a leading axis of
                chains if there are several.
            **kwargs: The keyword arguments of the model.
        """
        begin, collection = time.perf_counter(), take_collection(self)
        if self.num_chains > 1 and is_prng_key(rng_key):
            rng_key = jax.random.split(rng_key, self.num_chains)
        check_init_params(init_params, self.num_chains)
        start = self.post_warmup_state
        if start is not None:
            start = start._replace(rng_key=rng_key)
        plan = Plan(
            num_warmup=self.num_warmup,
            lower=collection.lower,
            upper=collection.upper,
            size=collection.size // self.thinning,
            thinning=self.thinning,
            num_chains=self.num_chains,
            chain_method=self.chain_method,
            fields=choose_fields(self.sampler, extra_fields),
        )
        source = Source(self.sampler, self.postprocess_fn)
        arrays, key = self._programs.key(
            (args, kwargs), source, parts=source, plan=plan, leave_out=_set_by_init
        )
        if start is None or self._origin is None:
            # Sampling after a warm-up keeps the params of the warm-up.
            self._origin = rng_key
        shared = Shared(self._origin, arrays)
        chains = ChainStart(rng_key, start, init_params)
        if self.chain_method == "parallel" and self.num_chains > 1:
            # The keys of an earlier run's last state are spread over the devices.
            origin = jax.device_put(self._origin, jax.local_devices()[0])
            shared = replicate(Shared(origin, arrays), self.num_chains)
            chains = spread(chains, self.num_chains)
        with explain_tracing_errors("CompiledMCMC"):
            carry, valid = self._programs.begin(key, chains, shared)
            self._check_valid(valid, chains, args, kwargs)
            if self.progress_bar:
                done = self._run_with_bar(key, carry, shared, collection.phase)
            else:
                # Bounds are traced inputs, so that one program serves all of them.
                bounds = np.int32(0), np.int32(plan.upper)
                done = self._programs.run(key, carry.state, *bounds, shared)
        draws, last_state, steps = done
        states = dict(zip(plan.fields.names, draws, strict=True))
        record_run(self, states, last_state, args, kwargs)
        if not isinstance(steps, Tracer):
            cost = Cost(gradient_evaluations=int(steps))  # waits for the run
            cost = cost._replace(seconds=time.perf_counter() - begin)
            keep_cost(self, cost)

    def _run_with_bar(
        self, key: Key, carry: Carry, shared: Shared, phase: str | None
    ) -> tuple:
        plan: Plan = key.plan
        step = self.progress_rate or max(plan.upper // 20, 1)
        how = f", {plan.num_chains} chains {plan.chain_method}"
        with tqdm.tqdm(total=plan.upper) as bar:
            for first in range(0, plan.upper, step):
                stop = min(first + step, plan.upper)
                bounds = np.int32(first), np.int32(stop)
                carry = self._programs.advance(
                    key, carry.draws, carry.state, carry.steps, *bounds, shared
                )
                name = phase or ("warmup" if stop <= plan.lower else "sample")
                bar.set_description(
                    name + (how if plan.num_chains > 1 else ""), refresh=False
                )
                text = _diagnostics(self.sampler, carry.state)
                bar.set_postfix_str(text, refresh=False)
                bar.update(stop - first)
        return self._programs.finish(key, carry)

    def _check_valid(
        self, valid: Valid, chains: ChainStart, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Raise if a chain starts where the density or its gradient is not finite.

        NumPyro's own error comes first if it finds one: it names the site.
        """
        if isinstance(valid.finite, Tracer):
            return
        bad = np.flatnonzero(~np.asarray(valid.finite))
        if bad.size == 0:
            if isinstance(self.sampler, AbstractVectorKernel):
                self.sampler.check_start(valid.finite, valid.stable)
            return
        if chains.init_params is None:
            keys = chains.rng_key
            initialize_model(
                jax.random.split(keys if is_prng_key(keys) else keys[bad[0]])[1],
                self.sampler.model,
                init_strategy=init_strategy(self.sampler),
                model_args=args,
                model_kwargs=kwargs,
            )
        raise RuntimeError(
            "Cannot find valid initial parameters: the log density or its gradient is "
            f"not finite at the start of chains {bad}. Check the model, or give other "
            "init_params or another init_strategy."
        )

    def _flatten(self, states: Any) -> Any:
        return self._programs.flatten(states)


def _set_by_init(value: Any) -> frozenset[str]:
    """The attributes of a kernel that a run finds anew, so they decide nothing."""
    if isinstance(value, AbstractVectorKernel):
        return value.set_by_init
    return SET_BY_KERNELS if isinstance(value, HMC) else frozenset()


def _diagnostics(kernel: Any, state: Any) -> str:
    """The text of NumPyro's progress bar, averaged over chains."""
    if isinstance(kernel, AbstractVectorKernel):
        return kernel.get_diagnostics_str(jax.device_get(state))
    steps, size, accepted = jax.device_get(
        (state.num_steps, state.adapt_state.step_size, state.mean_accept_prob)
    )
    return (
        f"{np.mean(steps):.0f} steps of size {np.mean(size):.2e}. "
        f"acc. prob={np.mean(accepted):.2f}"
    )
