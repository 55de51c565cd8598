"""An update's way: weighting, clipping, encoding, and the check that the steps fit together."""
