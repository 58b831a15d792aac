"""Mutation testing of the core: small faults are put into it, one at a time, and the tests must notice each of them.

operators     source of a module -> its mutants
harness       runs tests against a mutant, in a forked process; no file of the tree is changed
equivalents   mutants that no test can kill, each with the reason
__main__      the command: `python -m tests.mutation`
"""
