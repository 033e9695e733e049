"""Learning from what was measured: the log of real generations, and what follows from it.

record.py      one line of the log: a finished generation, or an interval of serving
log.py         the file: appended to by programs that run, read by those that learn
this_machine.py  the machine that this process runs on, for a record
samples.py     measured steps beside what a profile predicts for them
robust.py      factors from such pairs: medians, and a line where the history shows
refiner.py     the factors by which a profile is off, one kind of work after the other
refine.py      a device profile whose rates are corrected by a log of its machine
predict.py     the figures that profiles or a plan predict for a measured generation
comparison.py  predicted beside measured, with a verdict
"""
