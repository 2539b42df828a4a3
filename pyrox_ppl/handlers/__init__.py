"""Effect handlers that say what a module's parameters mean."""

from pyrox_ppl.handlers._amortize import amortize as amortize
from pyrox_ppl.handlers._bayesianize import bayesianize as bayesianize
from pyrox_ppl.handlers._learn import learn as learn
from pyrox_ppl.handlers._linearize import linearize as linearize
from pyrox_ppl.handlers._scope import scope as scope
