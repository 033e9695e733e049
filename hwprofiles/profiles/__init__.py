"""Device profiles: their values, the shipped ones, and rates read off them."""
