"""The search: every configuration at once, exactly, and why the chosen one was chosen.

problem.py           the question: model, machines, limits, objective, and the choices there are
request.py           from two machines and a model to a problem
drafts.py            ways to draft that a plan may choose among
step_times.py        seconds of front, back and codec on the grid's axes
edge_bytes.py        peak bytes of the edge on them, at any length
link_independent.py  everything that does not depend on the link, computed once a problem
prompt_places.py     where each configuration's prompt is computed over one link
rounds.py            rounds over one link: what they take and bring
grid.py              one link put to the problem: predictions and limits of every configuration
safety.py            limits that have to be kept with a probability
solve.py             the best one, lexicographically; the Pareto front
explain.py           what binds, what more of it would buy, where the answer flips
alternatives.py      what else there was
to_plan.py           from the chosen cell to a Plan with its predictions
planner.py           one problem put to many links and limits

Exhaustive over the discrete choices, so exact by construction; the longest sequence, the one
choice that is not enumerated, is solved in closed form (its limits are monotone in it).
`tests/optimizer/search` compares all of it with a scalar brute force over the cost models.
"""
