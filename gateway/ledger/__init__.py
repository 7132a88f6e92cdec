"""`gateway ledger`, `reconcile` and `simulate`: the ledger on the command line.

A source reads entries and open reservations, of a running gateway or of Redis; a command asks it once and prints.
Tables, invoices and what is said about both are pure. Nothing here knows how costs come about.
"""
