"""Checks of Koinon itself: the real protocol under a virtual clock, with everything that may go wrong."""
