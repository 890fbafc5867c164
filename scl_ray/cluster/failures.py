"""Remote work that did not end well: what went wrong by itself is not tried again, what was lost with a machine is."""

import contextlib
from collections.abc import Iterator

import ray


class Failed(Exception):
    """The work itself went wrong, and would again. The message is one clause."""


class Lost(Exception):
    """The work was lost through no fault of its own. The message is one clause."""


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Turns the errors of remote tasks into Failed and Lost."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise Failed(clause(error.cause)) from error
    except ray.exceptions.RayError as error:
        raise Lost(clause(error)) from error


def clause(error: BaseException) -> str:
    """*error* in one line; Ray's own say last what matters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if isinstance(error, ray.exceptions.RayError) else f"{type(error).__name__}: {lines[0]}"
