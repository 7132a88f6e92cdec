"""Limits as pure rules: the grammar of policies and the strict sliding window. Integers, microseconds, no clock.

A `Policy` says how many requests a window may hold. `window.py` decides, given a policy, a window's state and
the store's time. `stores/` executes the same rule in memory and inside Redis; one table of cases holds all three
together.
"""

from gateway.limits.policy import Policy, parse_limits

__all__ = ["Policy", "parse_limits"]
