"""Drivers for real cameras and field sources, found by name through entry points (see `realtime_skyseg.devices`).

A driver imports `realtime_skyseg.devices`, `realtime_skyseg.records`, `realtime_skyseg.errors` and its device's
library, nothing else of the product.
"""
