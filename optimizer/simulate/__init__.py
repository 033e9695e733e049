"""Simulating a deployment: many edge clients, their links, and the servers behind them.

scenario/        what to simulate, as frozen values read from YAML
assemble.py      plan, scenario and a command's options put together
setup.py         a scenario with the profiles that it names
workload.py      which requests come when, drawn by client from the scenario's seed
times.py         seconds of the front and of a packed batch, remembered
links.py         one client's own link in closed form; a link that several share as queues
client_links.py  which client gets which link
sessions.py      a session on a server, and a frame on its way
places.py        sessions, KV blocks and the admission queue of one server
server.py        one server's loop: the queue of frames, batches, answers
server_setup.py  a server from a setup
replicas.py      which servers are there, and how many the load wants
door.py          what clients connect to: a server, or one door before all
channel.py       one client's gRPC channel to one server
connector.py     attempts at servers until one opens a session
frames.py        a generation's frames: computed, encoded, sent, sent again
prefill.py       how far a prompt is, and what its chunks took
drafts.py        how many tokens are drafted and accepted
draft_lengths.py how many drafts a client's steps carry, and what goes ahead of answers
flights.py       the frames of a step that leave ahead of its answer
generation.py    one answer: open, prefill, decode, recover
local_answer.py  one answer without a server
client.py        one device: its requests one after another
context.py       what all clients share
simulation.py    one replication, event by event (simpy)
record.py        what a replication leaves behind
measures.py      quantiles, shares and rates of it
replicate.py     replications in parallel processes
budget.py        how many clients, which link, and what to change
sweep.py         any key of plan or scenario over a list of values
report/          JSON, CSV, pictures and the HTML page

Decisions are the product's own (`optimizer.policy`): the simulator calls the same scheduler,
admission rule, controller, chunk sizes, draft length and retry rule as the server and the edge, and
the scaling rule of real replicas. HAProxy's choice of a replica is written there a second time.
Only time, links and models are modelled.
"""
