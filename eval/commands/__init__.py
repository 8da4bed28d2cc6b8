"""What the command line calls. Importing these is quick."""
