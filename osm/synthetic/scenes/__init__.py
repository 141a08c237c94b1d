"""Draws synthetic scenes (images with panoptic masks and names) from a seed as datasets in COCO-panoptic format."""
