"""show_versions: prints the versions and devices that a bug report needs."""

import collections
import importlib.metadata
import platform

import jax

from pyrox_ppl._version import __version__

# The packages that results depend on, then those that the extras install.
_DISTRIBUTIONS = (
    "jax",
    "jaxlib",
    "numpyro",
    "equinox",
    "einops",
    "jaxtyping",
    "numpy",
    "xarray",
    "arviz",
    "arviz-base",
    "arviz-stats",
    "matplotlib",
    "h5netcdf",
    "h5py",
    "zarr",
    "diffrax",
    "optax",
    "scikit-learn",
    "quax",
    "blackjax",
)


def show_versions() -> None:
    """Print the versions and devices that a bug report needs, in one block to paste.

    Versions come from the installed metadata, so nothing is imported for them. JAX
    starts its backend, if it has not yet, to list the devices.

    Example:
        >>> import pyrox_ppl as px
        >>> px.show_versions()  # doctest: +ELLIPSIS
        pyrox_ppl     0...
        python        3...
        platform      ...
        jax           0...
        jax x64       ...
    """
    lines = {
        "pyrox_ppl": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    lines |= {name: _version_of(name) for name in _DISTRIBUTIONS}
    lines |= {
        **_devices(),
        "jax x64": str(jax.config.jax_enable_x64),
    }
    for name, value in lines.items():
        print(f"{name:<13} {value}")


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    """Return backend and devices; if there are none, the report says why."""
    try:
        backend, devices = jax.default_backend(), jax.devices()
    except RuntimeError as error:
        why = " ".join(str(error).split())
        return {"jax backend": f"none ({why})", "jax devices": "none"}
    kinds = collections.Counter(device.device_kind for device in devices)
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return {"jax backend": backend, "jax devices": counts}
