"""Draws synthetic scenes (images with panoptic masks and names) from a seed, and saves them in COCO-panoptic format."""
