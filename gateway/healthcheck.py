"""`gateway healthcheck`: asks a gateway on this machine whether it is alive."""

from __future__ import annotations

import http.client
from typing import Final

from gateway.admin_client import connection_to

TIMEOUT_S: Final = 3.0
"""Well under the 30 s after which container runtimes give up by themselves."""


def ask(url: str) -> str:
    """Send `GET /healthz`. A certificate is not verified: it is for the name that clients use, not for this machine's.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:/path`.

    Returns:
        What is wrong; nothing if the answer is a 200.

    Raises:
        ConfigError: It is no such address.
    """
    connection, name = connection_to(url, TIMEOUT_S, verifies=False)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {name}: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if status == 200 else f"{name} answered {status}"
