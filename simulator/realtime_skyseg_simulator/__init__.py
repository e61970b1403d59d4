"""Cameras without a microscope: `replay` plays recordings back, the twin simulates sample, magnet and microscope."""
