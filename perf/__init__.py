"""What the gateway costs: part by part, and as a whole.

By parts: `cases.py` lists the cases. One is set up as a `Bench` (bench.py): inputs made untimed, a loop over them, the
same loop doing nothing, and a check that the loop does what the case says. `heads.py` and `parts.py` set up those that
need no event loop, `exchanges.py` those that run through a whole gateway or its Redis store, on connections that are
objects in this process (in_memory.py); `messages.py` has the bytes on them. `micro.py` measures their time, `counts.py`
their instructions (one.py is its child). All of it goes through what the gateway offers to others: its functions,
`Gateway`, and `asyncio.Protocol`.

As a whole: the other scripts start the program and put load on it. They import nothing of the gateway's.
"""
