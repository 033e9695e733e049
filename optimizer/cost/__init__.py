"""Cost models: bytes and seconds of a split deployment, from geometry and profiles alone.

weights.py   bytes of weights, layer by layer and kind by kind
edge.py      seconds of the front on the device
memory.py    peak bytes of the edge process, part by part
cloud.py     seconds of the back by batch, and the batch that a load settles at
link.py      seconds on the wire, at a quantile
codec.py     bytes and seconds of a frame
flight.py    what comes in frames ahead of a round's answer
request.py   all of these in line: time to first token, time between tokens

Everything here is a pure function of frozen values; nothing loads a model or reads a clock.
"""
