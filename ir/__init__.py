"""The intermediate representation: programs of Einsum cascades, their text form, verifier and interpreter."""
