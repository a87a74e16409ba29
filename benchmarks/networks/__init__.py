"""Well-known networks as operator graphs with sizes, for the scheduler (`python -m benchmarks.networks`)."""
