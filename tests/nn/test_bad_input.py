"""Each wrong width, size or name raises and names the argument and what came."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyrox_ppl.nn import (
    SIREN,
    ConcatConditioner,
    ConditionedINR,
    FiLM,
    HyperLinear,
    SirenDense,
)

KEY = jax.random.key(0)
INNER = SIREN.init(2, 4, 1, depth=3, key=KEY)
FIELD = ConditionedINR.init(INNER, conditioner_cls=FiLM, cond_dim=3, key=KEY)
# A module, the name and width of its features, and of its context.
CONDITIONAL = {
    "concat": (ConcatConditioner.init(4, 3, key=KEY), "num_features", 4),
    "film": (FiLM.init(4, 3, key=KEY), "num_features", 4),
    "hyper": (HyperLinear.init(4, 5, 3, key=KEY), "target_in", 4),
    "field": (FIELD, "in_features", 2),
}
batches = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@pytest.mark.parametrize("name", CONDITIONAL)
@given(batch=batches, wrong=st.integers(0, 7))
def test_a_wrong_feature_width_names_its_argument(name, batch, wrong):
    module, argument, width = CONDITIONAL[name]
    assume(wrong != width)
    with pytest.raises(ValueError, match=f"{argument}={width}") as error:
        module(jnp.ones((*batch, wrong)), jnp.ones(3))
    assert str((*batch, wrong)) in str(error.value)


@pytest.mark.parametrize("name", CONDITIONAL)
@given(batch=batches, wrong=st.integers(0, 7))
def test_a_wrong_context_width_names_cond_dim(name, batch, wrong):
    module, _, width = CONDITIONAL[name]
    assume(wrong != 3)
    with pytest.raises(ValueError, match="cond_dim=3") as error:
        module(jnp.ones((*batch, width)), jnp.ones((*batch, wrong)))
    assert str((*batch, wrong)) in str(error.value)


@pytest.mark.parametrize("name", CONDITIONAL)
@given(batch=batches, context=batches)
def test_batch_axes_broadcast_one_to_one_or_raise(name, batch, context):
    module, _, width = CONDITIONAL[name]
    x, z = jnp.ones((*batch, width)), jnp.ones((*context, 3))
    fits = (
        not batch
        or not context
        or (
            len(batch) == len(context)
            and all(a == b or 1 in (a, b) for a, b in zip(batch, context, strict=True))
        )
    )
    if fits:
        expected = jnp.broadcast_shapes(batch, context)
        assert module(x, z).shape[:-1] == expected
    else:
        with pytest.raises(ValueError, match="as many batch axes") as error:
            module(x, z)
        assert str(batch) in str(error.value)
        assert str(context) in str(error.value)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_scalar_is_refused(name):
    module, argument, width = CONDITIONAL[name]
    with pytest.raises(ValueError, match=argument):
        module(1.0, jnp.ones(3))
    with pytest.raises(ValueError, match="cond_dim"):
        module(jnp.ones(width), 1.0)


@pytest.mark.parametrize("net", [INNER, INNER.layers[0]], ids=["siren", "dense"])
@given(batch=batches, wrong=st.integers(0, 7))
def test_a_wrong_coordinate_width_names_in_features(net, batch, wrong):
    assume(wrong != 2)
    with pytest.raises(ValueError, match="in_features=2"):
        net(jnp.ones((*batch, wrong)))


SIZES = {
    "num_features": lambda n: FiLM.init(n, 3, key=KEY),
    "cond_dim": lambda n: ConcatConditioner.init(4, n, key=KEY),
    "target_in": lambda n: HyperLinear.init(n, 4, 3, key=KEY),
    "target_out": lambda n: HyperLinear.init(4, n, 3, key=KEY),
    "in_features": lambda n: SirenDense.init(n, 4, key=KEY),
    "out_features": lambda n: SIREN.init(2, 4, n, depth=2, key=KEY),
    "hidden_features": lambda n: SIREN.init(2, n, 1, depth=2, key=KEY),
    "depth": lambda n: SIREN.init(2, 4, 1, depth=n, key=KEY),
}


@pytest.mark.parametrize("argument", SIZES)
@pytest.mark.parametrize("size", [0, -1, True, 2.0, "4", None])
def test_a_size_that_is_no_positive_integer_names_its_argument(argument, size):
    # In tests beartype sees a wrong type first, and raises an error of its own.
    with pytest.raises(Exception, match=argument):
        SIZES[argument](size)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SIREN.init(2, 4, 1, depth=1, key=KEY), "at least 2"),
        (lambda: SIREN.init(2, 4, 1, depth=2, key=KEY, first_omega=0.0), "omega"),
        (lambda: SirenDense.init(2, 4, key=KEY, c=-1.0), "c must be"),
        (lambda: HyperLinear.init(2, 4, 3, key=KEY, init_scale=0.0), "init_scale"),
    ],
)
def test_a_value_out_of_range_names_its_argument(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FiLM.init(4, 3, key=KEY, gamma_activation="relu"), "gamma_activation"),
        (lambda: SirenDense.init(2, 4, key=KEY, regime="middle"), "regime"),
        (lambda: make_field(mode="output"), "mode"),
        (lambda: make_field(inner=3), "inner"),
        (lambda: make_field(conditioner_cls=eqx.nn.Linear), "conditioner_cls"),
        (lambda: make_field(conditioner_cls=FiLM.init(4, 3, key=KEY)), "conditioner"),
        (lambda: make_field(inner=jnp.sin, mode="input"), "in_features"),
        (lambda: make_field(inner=jnp.sin, in_features=2), "layers"),
        (lambda: make_field(inner=Layers()), "out_features"),
    ],
)
def test_a_wrong_name_or_network_names_its_argument(make, match):
    with pytest.raises(Exception, match=match):
        make()


def make_field(inner=INNER, conditioner_cls=FiLM, **kwargs):
    return ConditionedINR.init(
        inner, conditioner_cls=conditioner_cls, cond_dim=3, key=KEY, **kwargs
    )


class Layers(eqx.Module):
    """A network whose layers do not tell their widths."""

    layers: tuple = (jnp.sin, jnp.cos)
    in_features: int = eqx.field(default=2, static=True)

    def __call__(self, x):
        return x
