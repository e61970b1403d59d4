"""Cameras without a microscope: `replay` plays recordings back; `film` and `kerr_camera` make synthetic ones."""
