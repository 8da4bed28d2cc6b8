"""Statistics of episodes and chunks, and the summary of a run."""
