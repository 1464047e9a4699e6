"""`make bench`: Nuages against stock Django and FastAPI, in one run on one machine.

What is measured and why it is fair stands in docs/benchmarks.md.
"""
