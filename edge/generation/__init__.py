"""One generation from prompt to text: session, loop, drafts, recovery."""
