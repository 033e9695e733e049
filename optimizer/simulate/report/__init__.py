"""What a simulation leaves in a folder: JSON, CSV, pictures, and one self-contained HTML page.

charts.py  what a picture shows, as data
svg.py     a chart as SVG that follows the page's light or dark colours
png.py     the same chart through matplotlib
page.py    the HTML page
files.py   everything, written
"""
