"""The fault campaign: what can happen to a machine, done to it on purpose, many times.

    python -m tests.faults --tries 100     resumable; writes benchmarks/RESULTS.md and scores/

Nothing here is known to the product: faults are planted in a forked child that then runs a script.
"""
