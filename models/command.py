"""What every command line here shares: libraries that keep quiet, and a user's mistake as one line, exit code 2."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

from models.config import UserError


def quiet() -> None:
    """Keep the libraries' chatter away from what the user asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def exit_code(command: Callable[[], int], subject: object) -> int:
    """What a command returns; 2 where the user or the disk stopped it, with one line on stderr that says why.

    Args:
        command: does the work.
        subject: what to name where the system's error names no file.
    """
    try:
        return command()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
    except OSError as error:  # a full disk, a read-only folder: what is written stays readable
        print(f"Error: {error.strerror or error}: {error.filename or subject}", file=sys.stderr)
    return 2
