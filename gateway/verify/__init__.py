"""`gateway verify`: proves on a running deployment, from its clients' side, that its limits hold.

A `Plan` is what the user asked for. Workers, processes of their own, send requests and tell when each admitted one was
sent and answered (`Report`); faults hit Redis meanwhile; the judge, which is pure, finds the worst window in all that;
a `Result` is printed. Flow: options, run, (worker | faults), judge, report. It knows a gateway only by HTTP, so what it
finds does not depend on what the gateway believes of itself.
"""
