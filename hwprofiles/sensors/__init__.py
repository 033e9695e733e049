"""What the machine's own sensors say: energy and power, heat, clocks, and the kinds of its CPUs."""
