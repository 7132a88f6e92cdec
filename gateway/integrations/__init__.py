"""The limits inside other people's frameworks: `asgi` and `httpx`. Each module imports only what it is named after."""
