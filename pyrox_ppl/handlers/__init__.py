"""Handlers that say what a module's parameters mean."""

from pyrox_ppl.handlers.amortize import amortize as amortize
from pyrox_ppl.handlers.bayesianize import bayesianize as bayesianize
from pyrox_ppl.handlers.learn import learn as learn
from pyrox_ppl.handlers.scope import scope as scope
