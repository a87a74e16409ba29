"""COSMA: order of operators, address of every tensor, and what leaves fast memory when, as one optimum.

`graph` says what is scheduled, `plan` what a schedule is and `simulate` what it costs; `peak`, `residency`, `search` and
`joint` find optima of parts of the problem, and `optimise` composes them.

Source: Li et al., COSMA (arXiv 2311.18246); Steiner et al., OLLA (arXiv 2210.12924).
"""
