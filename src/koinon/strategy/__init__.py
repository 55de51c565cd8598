"""Recipes: frozen compositions of stages, reducer, sampling and server optimizer."""
