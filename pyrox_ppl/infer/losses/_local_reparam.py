"""LocalReparam_ELBO: draws what a layer computes, not its weights."""

from typing import final

from pyrox_ppl.infer.losses._elbo import AbstractRowELBO


@final
class LocalReparam_ELBO(AbstractRowELBO):
    """TODO-doc."""

    @property
    def _local(self) -> bool:
        return True
