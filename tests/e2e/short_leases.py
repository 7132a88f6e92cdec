"""The program with leases of a second on places in flight, so that a test need not wait for half a minute."""

from __future__ import annotations

import sys

from gateway.cli import main
from gateway.stores import redis

if __name__ == "__main__":
    defaults = redis.RedisStore.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lease_us"] = 1_000_000
    sys.exit(main())
