"""What is asked of policies: one file or folder each."""
