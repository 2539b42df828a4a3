"""What every test runs under: strict ranks, checked annotations, few examples."""

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator

import hypothesis
import jax
import jaxtyping
import pytest
import typecheck

# Before the package is imported, by a test or for its doctests. pytest imports this
# file first, also for doctests, if `tests` is among the folders that it is given.
typecheck.install()
jax.config.update("jax_numpy_rank_promotion", "raise")

# Half of the time goes into compiling, and many a program comes twice: a run and its
# continuation, ours and NumPyro's. JAX finds its own programs again in a folder. An
# entry that is half written is an error, so each worker writes into its own folder.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
# The folder of the process that started the workers, which they exchange entries by.
SHARED = os.environ.setdefault("PYROX_PPL_COMPILED", COMPILED.name)
for name, value in {
    "jax_compilation_cache_dir": COMPILED.name,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # No line of Python is written into a program: only profilers would read it.
    "jax_traceback_in_locations_limit": 0,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the processes that tests start

hypothesis.settings.register_profile(
    "pyrox_ppl", deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("pyrox_ppl")

MARKERS = {
    "rank_promotion": "NumPyro or ArviZ broadcasts across ranks in this test",
    "wrong_types": "arguments of a wrong type on purpose: the package's own checks "
    "answer, not beartype",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_unconfigure() -> None:
    COMPILED.cleanup()


def pytest_collection_finish() -> None:
    # What is imported and collected stays: garbage collections need not visit it.
    gc.freeze()
    # Tracing makes many objects, few of which are in cycles.
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(autouse=True, scope="module")
def _exchange_programs() -> Iterator[None]:
    """After a file, nothing is being written: link what is new to both folders."""
    yield
    for one, other in ((COMPILED.name, SHARED), (SHARED, COMPILED.name)):
        for name in set(os.listdir(one)) - set(os.listdir(other)):
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.link(os.path.join(one, name), os.path.join(other, name))


@pytest.fixture(autouse=True)
def _relax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Heed the two markers."""
    broadcasts = request.node.get_closest_marker("rank_promotion") is not None
    unchecked = request.node.get_closest_marker("wrong_types") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    with jax.numpy_rank_promotion("allow" if broadcasts else "raise"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key() -> jax.Array:
    """A JAX PRNG key."""
    return jax.random.key(0)
