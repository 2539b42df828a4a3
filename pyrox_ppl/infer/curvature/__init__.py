"""The curvature of a likelihood at a mode, in the structures of a Laplace guide."""

from pyrox_ppl.infer.curvature._at_mode import ModelAtMode as ModelAtMode
from pyrox_ppl.infer.curvature._compiled import Compiled as Compiled
from pyrox_ppl.infer.curvature._make import make_curvature as make_curvature
from pyrox_ppl.infer.curvature._make import prior_precision as prior_precision
from pyrox_ppl.infer.curvature._make import restore_curvature as restore_curvature
from pyrox_ppl.infer.curvature._make import restore_prior as restore_prior
