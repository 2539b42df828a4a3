"""Many members of one fit, trained together."""

from pyrox_ppl.infer.ensembles._run import EnsembleResult as EnsembleResult
from pyrox_ppl.infer.ensembles._run import run_ensemble as run_ensemble
