"""Gradients of a small program under ordinary draws of its weights, and under ours."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from pyrox_ppl.infer.losses._estimate import Estimator
from pyrox_ppl.infer.losses._gaussian import Gaussian
from pyrox_ppl.infer.losses._plan import make_plan

KEY = jr.key(0)


class Program:
    """A density of a module's arrays, with a factorised normal over each.

    The scales are large, so that a biased estimate is far from the truth.
    """

    def __init__(self, module, density, scale=0.6):
        arrays, static = eqx.partition(module, eqx.is_inexact_array)
        leaves, tree = jax.tree.flatten(arrays)
        self.names = [f"w{i}" for i in range(len(leaves))]
        self.locs = dict(zip(self.names, leaves, strict=True))
        self.scales = jax.tree.map(lambda leaf: jnp.full(leaf.shape, scale), self.locs)

        def run(values):
            arrays = jax.tree.unflatten(tree, [values[name] for name in self.names])
            return density(eqx.combine(arrays, static))

        self.run = run
        self.closed = jax.make_jaxpr(run)(self.locs)

    @property
    def plan(self):
        return make_plan(self.closed, self.names)

    def ordinary(self, params, key):
        return self.run(self._draw(params, key))

    def _draw(self, params, key):
        locs, scales = params
        keys = jr.split(key, len(locs))
        return {
            name: locs[name] + scales[name] * jr.normal(k, locs[name].shape)
            for name, k in zip(self.names, keys, strict=True)
        }

    def estimate(self, params, key, plan, local):
        first, second = jr.split(key)
        values, (locs, scales) = self._draw(params, first), params
        inputs = [
            values[n]
            if n in plan.dropped
            else Gaussian(locs[n], scales[n] ** 2, values[n] - locs[n])
            for n in self.names
        ]
        return Estimator(plan, local, second).run(self.closed, inputs)[0]

    def gradients(self, way, draws):
        """One gradient a draw, as rows: `way` is a function of parameters and key."""
        params = self.locs, self.scales

        def one(key):
            value, gradient = jax.value_and_grad(way)(params, key)
            leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)]
            return jnp.concatenate([value[None], *leaves])

        keys = jr.split(jr.key(7), draws)
        return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)

    def z_scores(self, *, local, draws=2000, plan=None):
        """Standardised differences of the means: the value, then the gradient."""
        plan = self.plan if plan is None else plan
        truth = self.gradients(self.ordinary, draws)
        ours = self.gradients(
            lambda params, key: self.estimate(params, jr.fold_in(key, 1), plan, local),
            draws,
        )
        variance = (truth.var(0) + ours.var(0)) / draws
        # Noise that is the same in both, or none, differs by rounding alone.
        return (truth.mean(0) - ours.mean(0)) / jnp.sqrt(variance + 1e-9)


def normal_density(f, y=1.0, scale=0.7):
    """The density of observations around bounded predictions."""
    return -0.5 * jnp.sum(((jnp.tanh(f) - y) / scale) ** 2)


def kinds(program):
    """How each weight is drawn: "rows", "signs" or "once"."""
    plan, found = program.plan, {}
    for name in program.names:
        paths = [
            path
            for path, use in plan.uses.items()
            if any(part.weight == name for part in use.parts)
        ]
        if name in plan.dropped:
            found[name] = "once"
        else:
            full = all(plan.is_full(path) for path in paths)
            found[name] = "rows" if full else "signs"
    return list(found.values())
