"""Budgets: what requests may cost in all, in money or any other unit. Pure: no I/O, no clock, no HTTP.

A `Budget` is an amount of a unit in a window. Before a request leaves, an `Ask` says the most that it can cost, and
that is reserved under all of its budgets, or nothing is; `Book` is the rule for one budget. When the answer has
passed, a `Settlement` says what it cost, and an `Entry` of the ledger remembers it. A reservation that nobody
renews is settled at its full amount: the money may be gone.

Amounts are integers of a unit's atoms: billionths (`NANO`) of money and of anything else that may be divided, single
ones of what is counted (`COUNTED`).
"""
