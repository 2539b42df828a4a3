"""Flipout_ELBO: one draw of the weights, with random signs for each row of data."""

from typing import final

from pyrox_ppl.infer.losses._elbo import AbstractRowELBO


@final
class Flipout_ELBO(AbstractRowELBO):
    """TODO-doc."""

    @property
    def _local(self) -> bool:
        return False
