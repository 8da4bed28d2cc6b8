"""Other libraries. Each is imported only when its integration is."""
