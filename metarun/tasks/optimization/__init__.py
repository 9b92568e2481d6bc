"""Task families whose tasks are training problems, for learned optimizers."""
