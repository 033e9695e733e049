"""The search: every configuration at once, exactly, and why the chosen one was chosen.

problem.py   the question: model, machines, limits, objective, and the choices there are
rates.py     the cost models' rates over arrays of working sets
steps.py     seconds of front and back over arrays of splits and positions
tables.py    everything that does not depend on the link, computed once a problem
grid.py      one link put to the tables: predictions and limits of every configuration
solve.py     the best one, lexicographically; the Pareto front
explain.py   what binds, what more of it would buy, where the answer flips
answer.py    from the chosen cell to a Plan with its predictions

Exhaustive over the discrete choices, so exact by construction; the longest sequence, the one
choice that is not enumerated, is solved in closed form (its limits are monotone in it).
`tests/optimizer_search` compares all of it with a scalar brute force over the cost models.
"""
