"""Benchmark harness: `python -m wlib bench`.

One run measures every arm of an op (the wlib kernel, the baselines and a plain copy) interleaved on
the same device, and writes one JSON line per point and arm.
"""
