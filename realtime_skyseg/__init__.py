"""Live segmentation of magnetic skyrmions in Kerr microscopy."""
