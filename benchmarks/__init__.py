"""Whole models beside their peers; see `run.py`."""
