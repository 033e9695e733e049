"""Which cached tokens stay when a sequence outgrows its cache: an interface, one policy a file."""
