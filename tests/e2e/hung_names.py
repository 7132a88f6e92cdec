"""The program where nobody who asks for a name gets an answer."""

from __future__ import annotations

import socket
import sys
import threading

from gateway.cli import main

if __name__ == "__main__":
    socket.getaddrinfo = lambda *_, **__: threading.Event().wait()  # type: ignore[assignment]
    sys.exit(main())
