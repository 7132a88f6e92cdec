"""The asyncio shell around `http1`: client connections, exchanges, upstream connections. The hot path.

A `ClientConnection` reads heads and starts an `Exchange` for each; the exchange (read exchange.py first: it is
the request's life) asks the admission for a verdict, the `UpstreamPool` for a connection, and two `Relay`s for
the bytes. Leaves return to the exchange; leaves do not call leaves. On the path that hits, a request makes no
task, future or timer: phases are methods that protocols call back, and deadlines are fields that one `Clock`
sweeps.
"""
