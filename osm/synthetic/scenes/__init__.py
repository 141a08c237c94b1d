"""Draws scenes, which are images with panoptic masks and names, from a seed as datasets in COCO-panoptic format."""
