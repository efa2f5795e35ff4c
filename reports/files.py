"""Writing what reports make."""

from pathlib import Path

from models.config import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders above it where they are missing; the same bytes on every system.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error.strerror}); name another place") from error
