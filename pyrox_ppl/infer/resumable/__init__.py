"""Runs that survive a kill: every segment is committed to disk."""

from pyrox_ppl.infer.resumable._mcmc import run_mcmc as run_mcmc
from pyrox_ppl.infer.resumable._minibatches import MinibatchResult as MinibatchResult
from pyrox_ppl.infer.resumable._minibatches import run_minibatches as run_minibatches
from pyrox_ppl.infer.resumable._svi import run_svi as run_svi
