"""Subordinate ids of a whole site: where they come from, whether they are safe, and how to plan them."""
