"""The mutation campaign: one small change of src at a time, and whether a test fails for it.

    python -m tests.mutants --sample 100     resumable; writes benchmarks/RESULTS.md and scores/

The changes are those of mutmut (requirements.txt here). Its own runner leaves out what stands
outside of functions and functions with decorators, and refuses a package that is called src;
cosmic-ray starts a process for each change, in which importing torch takes longer than the tests.
"""
