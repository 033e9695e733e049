"""Simulating a deployment: many edge clients, their links, and the servers behind them.

scenario.py    what to simulate, as a frozen value read from YAML
workload.py    which requests come when, drawn by client from the scenario's seed
ports.py       what is injected: the server's scheduler and admission, the edge's controller
times.py       seconds of the front and of a packed batch, memoised over the cost models
links.py       one client's own link in closed form; a link that several share as queues
server.py      the server's loop: waiting line, batches, KV accounting
connector.py   knocking at servers until one opens a session
generation.py  one answer: prefill, decode, recover
client.py      one device: its requests one after another
world.py       what they all share
simulation.py  one replication, event by event (simpy)
record.py      what a replication leaves behind
assemble.py    plan, scenario and options put together
measures.py    quantiles, shares and rates of it
replicate.py   replications in parallel processes
budget.py      how many clients, which link, and what to change
sweep.py       any key of plan or scenario over a list of values
report/        JSON, CSV, pictures and the HTML page

Decisions are the real system's: the scheduler, the admission rule and the controller come in
from above and are called as the server and the edge call them. Only time, links and models are
modelled.
"""
