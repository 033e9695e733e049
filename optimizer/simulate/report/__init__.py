"""What a simulation leaves in a folder: JSON, CSV, pictures, and one self-contained HTML page.

charts.py  what a picture shows, as data
draw.py    a chart as a PNG file, or as SVG in the page's light or dark colours
subject.py what was simulated, in words
page.py    the HTML page, of the parts in tables.py
files.py   everything, written
"""
