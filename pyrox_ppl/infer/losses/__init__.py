"""Losses with low-variance gradients, for any layer."""

from pyrox_ppl.infer.losses._flipout import Flipout_ELBO as Flipout_ELBO
from pyrox_ppl.infer.losses._local_reparam import LocalReparam_ELBO as LocalReparam_ELBO
