"""Priors that people use: rules ``Parameter -> Distribution`` for ``bayesianize``.

A rule is what ``bayesianize(prior=...)`` takes, alone or by name:
``{"*.bias": priors.normal(0.1), "*": priors.fan_in()}``. A rule of your own is a
function of a :class:`~pyrox_ppl.Parameter`.
"""

from pyrox_ppl._prior import NonCentered as NonCentered
from pyrox_ppl.priors._fixed import around_stored as around_stored
from pyrox_ppl.priors._fixed import fan_in as fan_in
from pyrox_ppl.priors._fixed import glorot as glorot
from pyrox_ppl.priors._fixed import kaiming as kaiming
from pyrox_ppl.priors._fixed import laplace as laplace
from pyrox_ppl.priors._fixed import normal as normal
from pyrox_ppl.priors._fixed import student_t as student_t
from pyrox_ppl.priors._hierarchical import hierarchical as hierarchical
from pyrox_ppl.priors._hierarchical import horseshoe as horseshoe
