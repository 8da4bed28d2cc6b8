"""PushT, in LeRobot: demonstrations, a policy, and samplers on the same episodes."""
