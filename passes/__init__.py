"""Rewrites from program to program, one file each, and the pipelines made of them."""
