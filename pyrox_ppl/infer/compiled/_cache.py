"""keep_compiled: JAX's persistent compilation cache, turned on."""

from pathlib import Path

import jax


def keep_compiled(folder: str | Path, *, min_seconds: float = 0.5) -> Path:
    """Keep compiled programs in a folder, for every later process that asks for it.

    Turns on JAX's own persistent compilation cache, for the whole process. A program is
    found again if its code, shapes, devices, flags and the versions of JAX and XLA are
    the same; tracing the model is not saved. Call it before the first compilation.

    Args:
        folder: Where the programs are kept; made if it is not there.
        min_seconds: Programs that compile faster than this, in seconds, are not kept.

    Returns:
        The folder.

    Raises:
        ValueError: If `min_seconds` is negative.

    Example:
        >>> import tempfile, jax
        >>> from pyrox_ppl.infer import keep_compiled
        >>> before = jax.config.jax_compilation_cache_dir
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keep_compiled(folder, min_seconds=0.0).is_dir()
        True
        >>> jax.config.update("jax_compilation_cache_dir", before)
    """
    if min_seconds < 0:
        raise ValueError(f"min_seconds must not be negative, got {min_seconds}.")
    folder = Path(folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
