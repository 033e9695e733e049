"""Link profiles, recorded traces, and the model of a link."""
