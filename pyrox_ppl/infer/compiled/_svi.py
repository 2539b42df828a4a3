"""CompiledSVI: NumPyro's SVI as compiled programs that are remembered."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from numpyro.infer import SVI
from numpyro.infer.svi import SVIRunResult

from pyrox_ppl._cost import Cost, CountedSVIResult, gradients_of_svi
from pyrox_ppl._divergence import mean_of_finite, warn_of_divergence
from pyrox_ppl._numpyro import SET_BY_GUIDES, attributes_of_guide
from pyrox_ppl._observed_shapes import check_observed_shapes
from pyrox_ppl.infer._arrays import copy_arrays
from pyrox_ppl.infer._content_key import content_key
from pyrox_ppl.infer._mutable_state import (
    check_keeps_state,
    collected_params,
    evaluate_with_state,
)
from pyrox_ppl.infer.compiled._arguments import (
    ByContent,
    explain_tracing_errors,
    is_staged,
)
from pyrox_ppl.infer.compiled._programs import Key
from pyrox_ppl.infer.compiled._svi_params import all_params
from pyrox_ppl.infer.compiled._svi_program import (
    Start,
    Steps,
    SVIPrograms,
    can_begin_compiled,
    empty_losses,
    guide_parts,
    key_of_bounds,
)


class CompiledSVI(SVI):
    r"""NumPyro's ``SVI``, its initialisation and its run compiled once.

    NumPyro runs the model and sets up the guide operation by operation (hundreds of
    compilations), and ``svi.run`` compiles its loop anew each time. This class compiles
    one program that does all of ``init`` and one that takes the steps. The arguments of
    the model are inputs of both, so a later ``run`` of as many steps, with arguments of
    the same shapes and types, compiles nothing. States, losses and parameters are those
    of NumPyro's ``SVI`` with the same guide and key, up to rounding. But each ``init``
    sets the guide up anew, where NumPyro's guides keep the initial values of their
    first run. ``update`` and the rest are NumPyro's own. ``evaluate`` differs for
    ``mutable`` sites: they have the values of the state, not those of the start.

    A network's step costs what the mathematics costs, at every size, with the guide
    ``AutoNormal(model, init_loc_fn=init_to_stored)`` and the loss
    ``TraceMeanField_ELBO()``: scales and gradients are computed once a step, and the
    divergence in closed form. With :class:`AutoFlatNormal` a model of many small sites
    compiles faster. :class:`CompiledMCMC` says when a program is used again.

    The program sets up guides that are functions, NumPyro's ``AutoNormal`` and
    ``AutoDelta``, :class:`AutoFlatNormal`, and an ``AutoGuideList`` of them. For other
    guides ``init`` is NumPyro's own: they may keep something of their first run that a
    program cannot return, or order their vector otherwise in a compiled run.

    **Sites**: those of model and guide.

    Args:
        model: The NumPyro model.
        guide: The guide.
        optim: A NumPyro or Optax optimiser.
        loss: The ELBO.
        **static_kwargs: Keyword arguments of model and guide that never change.

    Raises:
        RuntimeError: On ``init`` and ``run``, if no initial values of finite density
            are found.
        ValueError: On ``run``, if the number of steps is not positive. On ``init`` and
            ``run``, if observations and their distribution broadcast each other.
        TypeError: On ``init`` and ``run``, JAX's own error if the model's Python code
            needs the values of its array arguments.

    References:
        Hoffman, M. D., Blei, D. M., Wang, C. and Paisley, J. (2013). Stochastic
        Variational Inference. JMLR 14.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import Trace_ELBO
        >>> from pyrox_ppl.infer import CompiledSVI, AutoFlatNormal
        >>> def model(x, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", x.shape[0]):
        ...         numpyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
        >>> x = jnp.linspace(0.0, 1.0, 8)
        >>> guide = AutoFlatNormal(model)
        >>> svi = CompiledSVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
        >>> fit = svi.run(jax.random.key(0), 300, x, y=2.0 * x, progress_bar=False)
        >>> again = svi.run(  # compiles nothing
        ...     jax.random.key(0), 300, x, y=3.0 * x, progress_bar=False
        ... )
        >>> abs(guide.median(fit.params)["slope"] - 2.0) < 0.2
        Array(True, dtype=bool)
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: Any,
        loss: Any,
        **static_kwargs: Any,
    ) -> None:
        super().__init__(model, guide, optim, loss, **static_kwargs)
        self._programs = SVIPrograms()
        self._set_by_init = SET_BY_GUIDES

    def init(
        self, rng_key: Any, *args: Any, init_params: Any = None, **kwargs: Any
    ) -> Any:
        """The initial state; as NumPyro's ``SVI.init``.

        Args:
            rng_key: A PRNG key.
            *args: The arguments of model and guide.
            init_params: Initial values of ``param`` sites by name.
            **kwargs: The keyword arguments of model and guide.

        Returns:
            NumPyro's ``SVIState``.
        """
        return self._start(rng_key, args, kwargs, init_params)[0]

    def run(
        self,
        rng_key: Any,
        num_steps: int,
        *args: Any,
        progress_bar: bool = True,
        stable_update: bool = False,
        forward_mode_differentiation: bool = False,
        init_state: Any = None,
        init_params: Any = None,
        **kwargs: Any,
    ) -> SVIRunResult:
        """Take steps from the initial state, or from a given one.

        Args:
            rng_key: A PRNG key.
            num_steps: The number of steps.
            *args: The arguments of model and guide.
            progress_bar: Whether to show one; it costs one more small program.
            stable_update: Whether to leave out steps that are not finite.
            forward_mode_differentiation: As in NumPyro's ``SVI.run``.
            init_state: A state to continue from.
            init_params: Initial values of ``param`` sites by name.
            **kwargs: The keyword arguments of model and guide.

        Returns:
            NumPyro's ``SVIRunResult``: ``params``, ``state`` and ``losses``; besides,
            the attributes ``seconds`` and ``gradient_evaluations``.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be a positive integer, got {num_steps}.")
        begin, state, fresh = time.perf_counter(), init_state, False
        if state is None:
            state, fresh = self._start(rng_key, args, kwargs, init_params)
        check_keeps_state(self, state)
        if not fresh:
            # The programs reuse the memory of their state, which others may hold.
            state = copy_arrays(state)
        piece = max(num_steps // 20, 1) if progress_bar else num_steps
        steps = Steps(num_steps, stable_update, forward_mode_differentiation, piece)
        arrays, key = self._key(args, kwargs, plan=steps)
        with explain_tracing_errors("CompiledSVI"):
            if progress_bar:
                state, losses = self._run_with_bar(key, state, arrays)
                params = self.get_params(state)
            else:
                state, losses, computed = self._programs.run(key, state, arrays)
                params = all_params(self, state, computed)
                params |= collected_params(self.guide, state)
        warn_of_divergence(losses, num_steps, stable=stable_update)
        cost = Cost(time.perf_counter() - begin, gradients_of_svi(self, num_steps))
        return CountedSVIResult.make(params, state, losses, cost=cost)

    def evaluate(self, svi_state: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss at a state, as in NumPyro, with its values of ``mutable`` sites."""
        return evaluate_with_state(self, svi_state, *args, **kwargs)

    def get_params(self, svi_state: Any) -> dict[str, Any]:
        """The values of ``param`` sites by name, and what the guide collected."""
        key = content_key(self.optim)[0], key_of_bounds(self)
        computed = self._programs.params(ByContent(self.plain(), key), svi_state)
        params = all_params(self, svi_state, computed)
        return params | collected_params(self.guide, svi_state)

    def adopt(self, start: Start) -> None:
        """Set up this object and its guide by a start, as ``init`` does."""
        before = self._guides_attributes()
        for guide, output in zip(guide_parts(self.guide), start.guides, strict=True):
            for name, value in output.value().items():
                setattr(guide, name, value)
        self.constrain_fn = start.constrain_fn.value()
        self._leave_out_what_changed(before)

    def keep(
        self,
        plan: Any,
        args: tuple,
        kwargs: dict[str, Any],
        make: Callable[[ByContent], Any],
        *,
        starts: bool = False,
    ) -> tuple[list, Any]:
        """The arrays among the arguments, and what `make` returns for the other parts.

        It is made once for each plan, for equal arguments and an equal SVI object. A
        program that `starts` a run depends on nothing that an earlier start has set.
        """
        arrays, key = self._key(args, kwargs, plan=plan, starts=starts)
        kept = self._programs.kept
        if key not in kept:
            kept[key] = make(key.arguments)
        return arrays, kept[key]

    def _start(
        self, rng_key: Any, args: tuple, kwargs: dict[str, Any], init_params: Any
    ) -> tuple[Any, bool]:
        """The initial state, and whether nothing else holds its arrays."""
        staged = is_staged(rng_key, args, kwargs, init_params)
        if can_begin_compiled(self.guide) and not staged:
            arrays, key = self._key(args, kwargs, plan=None, starts=True)
            with explain_tracing_errors("CompiledSVI"):
                start = self._programs.begin(key, rng_key, init_params, arrays)
            if start.finite:
                self.adopt(start)
                return start.state, True
        else:
            check_observed_shapes(self.model, args, kwargs | self.static_kwargs)
        # If no initial values are finite, NumPyro raises an error that names the site.
        attributes = self._guides_attributes()
        state = super().init(rng_key, *args, init_params=init_params, **kwargs)
        self._leave_out_what_changed(attributes)
        return state, False

    def _run_with_bar(self, key: Key, state: Any, arrays: list) -> tuple:
        number, size = key.plan.number, key.plan.piece
        losses = jax.device_put(empty_losses(key.plan))
        with tqdm.tqdm(total=number) as bar:
            for first in range(0, number, size):
                stop = min(first + size, number)
                state, losses = self._programs.advance(
                    key, losses, state, np.int32(first), np.int32(stop), arrays
                )
                done = np.asarray(losses[:stop])
                bar.set_postfix_str(
                    f"init loss: {done[0]:.4f}, avg. loss [{first + 1}-{stop}]: "
                    f"{mean_of_finite(done[first:]):.4f}",
                    refresh=False,
                )
                bar.update(stop - first)
        return state, losses

    def _key(
        self, args: tuple, kwargs: dict, *, plan: Any, starts: bool = False
    ) -> tuple[list, Key]:
        """The arrays among the arguments, and what else the program depends on."""
        guides = guide_parts(self.guide)

        def leave_out(value: Any) -> frozenset[str]:
            is_guide = any(value is guide for guide in guides)
            return self._set_by_init if is_guide else frozenset()

        svi = self.plain()
        parts = (svi.model, svi.guide, svi.optim, svi.loss, svi.static_kwargs)
        # The first program finds the supports. The others hold them as constants.
        known = None if starts else key_of_bounds(self)
        return self._programs.key(
            (args, kwargs), svi, parts=(*parts, known), plan=plan, leave_out=leave_out
        )

    def plain(self) -> SVI:
        """NumPyro's SVI of the same parts, as they are now."""
        svi = SVI(self.model, self.guide, self.optim, self.loss, **self.static_kwargs)
        svi.constrain_fn = self.constrain_fn
        return svi

    def _leave_out_what_changed(self, before: list[dict[str, Any]]) -> None:
        """Leave out of keys what a guide has set since its attributes were these."""
        self._set_by_init |= {
            name
            for old, new in zip(before, self._guides_attributes(), strict=True)
            for name, value in new.items()
            if old.get(name) is not value
        }

    def _guides_attributes(self) -> list[dict[str, Any]]:
        return [attributes_of_guide(guide) for guide in guide_parts(self.guide)]
