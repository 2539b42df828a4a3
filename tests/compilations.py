"""What is compiled within a block, for tests that count it."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """The names of what is compiled within, as a list that grows."""
    names = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
