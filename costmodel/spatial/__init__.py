"""The analytic model of a spatial accelerator: arrays of processing elements, a buffer, and a mapping of the Einsums to them.

cascade.py   a cascade as operations over unified ranks: what is computed, read and written at every point
roles.py     which rank is streamed, which is laid over the array, and in which pass each operation is
target.py    architecture and mapping as data (`targets/*.json`)
binding.py   operations bound to arrays, tensors given a home, tiles chosen to fit the buffer
count.py     reads and writes per level
model.py     cycles, latency, utilisation and energy of the whole

Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491) and its artifact; the counting rules are Timeloop's (Parashar et
al., ISPASS 2019): a tile is loaded again whenever a loop outside it that it depends on moves on.
"""
