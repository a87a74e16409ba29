"""Library operations: what is no Einsum. Filled below."""
LIBRARY = {}
