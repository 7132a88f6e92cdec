"""What is refused and what is taken, as data: raw bytes, what the RFCs say of them, and what the gateway must do.

`faults.py` has what can be wrong with any message; `refused.py` and `accepted.py` make requests, `bad_answers.py` and
`answers.py` make answers of it, so that both sides are held to the same severity. BEHAVIOUR.md names each group.
"""
