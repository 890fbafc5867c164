"""What the commands that write into a store share: how each way to end becomes one sentence and an exit code."""

import sys
from collections.abc import Callable

from rich.console import Console

from scl_ray import interruption, storage
from scl_ray.config import InputError


def run(work: Callable[[Console], int], wording: Callable[[str], str] = str) -> int:
    """Do a command's *work*, which prints to what it is given and returns the exit code. In the main thread alone.

    Returns 2 when the input was refused, in the command's own *wording*; 1 when the storage failed; 130 or 143 when
    the command was stopped by a signal or by somebody's ``--cancel``.
    """
    # A terminal wraps by itself; a file or a pipe gets whole lines.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, soft_wrap=not terminal, width=None if terminal else 110)
    with interruption.handled() as interrupted:
        try:
            return work(console)
        except InputError as error:
            print(f"refused: {wording(str(error))}", file=sys.stderr)
            return 2
        except OSError as error:  # a StorageError or, of what is not tried again, the system's own
            print(f"failed: {storage.told(error)}; the same command continues", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(interrupted.why, file=sys.stderr)
            return interrupted.code
