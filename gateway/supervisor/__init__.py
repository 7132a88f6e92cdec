"""Keeps several workers running on the same listening sockets: a process of its own, with nothing but this in it.

It is run as `python -IS supervisor/__main__.py KEY=VALUE… -- COMMAND…`, and imports only what a bare interpreter has or
what needs little memory: no logging, no socket, no typing, nothing else of the gateway. The listening sockets stay open
here, so a worker may end at any time and nobody who waits in the kernel's queue is reset.

`crew` decides, `system` does: it starts processes, sends signals, waits. `plan` is what both are started with. A worker
is the command with `GATEWAY_WORKER` in its environment. It writes how many workers its configuration asks for into a
pipe as soon as it serves. It also has the reading end of the lifeline, a pipe that nobody writes to: when that ends, so
has the supervisor.

SIGUSR2 starts the command anew: a worker first, then as many as that one asks for; when all of them serve, the old ones
are told to leave. Then the supervisor is executed anew as well, in its place, so that its process keeps its number.
A later version has to take the arguments of this one; keys that it does not know are to be ignored.
"""
