"""Benchmarks: what a transfer costs with aiozc, beside the ways there were before it.

Run with ``python -m bench``; ``python -m bench --help`` names the choices.
"""
