"""What is written to disk and read by both sides: plan, bundle, geometry."""
