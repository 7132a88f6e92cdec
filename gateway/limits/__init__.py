"""Limits as pure rules: the grammar of policies, and the rule that decides over them. Integers, microseconds, no clock.

A `Policy` says what a limit allows. Its state is a `Window`, a `Bucket` or `Places`, each in a file of its own, each
answering the same four questions; `rule.decide` asks them of all limits of a request, then charges all or none.
`stores/` executes the same rule in memory and inside Redis; one table of cases holds all three together.
"""

from gateway.limits.policy import Kind, Policy, parse_concurrency, parse_limits

__all__ = ["Kind", "Policy", "parse_concurrency", "parse_limits"]
