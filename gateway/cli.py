"""The `gateway` command: each failure is told in one line on stderr, and by an exit code (see `exit_codes`)."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

from gateway.errors import ConfigError, GatewayError
from gateway.exit_codes import FAILURE, FINE, INTERRUPTED, USAGE
from gateway.serving import named_file, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; None for the process's own.

    Returns:
        The exit code.

    Raises:
        SystemExit: With 2 when the arguments cannot be read, with 0 after `--help` or `--version`.
    """
    _fill_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help", "--version"}):
        words.insert(0, "serve")
    try:
        if words == ["serve"]:
            return serve({}, named_file(os.environ))
        from gateway.commands import run  # argparse and all options are a megabyte, which a server would keep

        with _printed():
            return run(words)
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except BrokenPipeError:  # the reader of the output, like `head`, has enough of it
        return FINE
    except (GatewayError, OSError) as error:
        return _fail(str(error), FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fill_standard_streams() -> None:
    """Open the descriptors 0, 1 and 2, where this process was started with them closed.

    Else the next socket would be one of them, and get the access log; and libuv aborts when it closes one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@contextlib.contextmanager
def _printed() -> Iterator[None]:
    """Flush what is printed inside: if that failed as Python exits, the exit code would mean nothing."""
    out: TextIO | None = sys.stdout
    if out is None:  # started with it closed
        yield
        return
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal's encoding has not
    try:
        yield
    finally:  # `--help` ends with SystemExit
        try:
            out.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # Python tries once more as it exits
            if not isinstance(error, BrokenPipeError):
                raise


def _fail(message: str, code: int) -> int:
    print(f"gateway: {message}", file=sys.stderr)
    return code
