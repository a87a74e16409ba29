"""The models that the tests, the benchmarks and the demo compile: see `zoo.py`."""
