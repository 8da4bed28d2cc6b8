"""A board of posts in the way of a robot's hand: which ways round them are taken, and how often."""
