"""Common priors: rules ``Parameter -> Distribution`` for ``bayesianize``.

``bayesianize(prior=...)`` takes one rule, or several by name:
``{"*.bias": priors.normal(0.1), "*": priors.fan_in()}``. Any function of a
:class:`~pyrox_ppl.Parameter` that returns a distribution is a rule.
"""

from pyrox_ppl._prior import NonCentered as NonCentered
from pyrox_ppl.priors._fixed import around_stored as around_stored
from pyrox_ppl.priors._fixed import fan_in as fan_in
from pyrox_ppl.priors._fixed import glorot as glorot
from pyrox_ppl.priors._fixed import kaiming as kaiming
from pyrox_ppl.priors._fixed import normal as normal
from pyrox_ppl.priors._heavy_tailed import laplace as laplace
from pyrox_ppl.priors._heavy_tailed import student_t as student_t
from pyrox_ppl.priors._hierarchical import hierarchical as hierarchical
from pyrox_ppl.priors._hierarchical import horseshoe as horseshoe
