"""What is decided while requests run: pure rules that edge, cloud and simulator call alike.

batching.py        which rows run in the server's next batch
admission.py       whether a session may start, waits, or is refused
level_control.py   which codec level holds the deadline between tokens
link_estimate.py   what the link does, from the messages that crossed it
prefill_chunks.py  how many prompt tokens the next chunk takes
prefill_place.py   how many of a prompt's tokens go to the cloud as ids
split_moves.py     at which of its splits a front in segments should run
draft_length.py    how many drafts a round should carry
frames_ahead.py    which guesses go in frames of their own while an answer is outstanding
power.py           how many threads and guesses a device spends, and on which of its cores
retry.py           which address to try next after a failed attempt, and after what wait

A rule holds no clock, no thread and no connection. Measurements go in, a decision comes out.
"""
