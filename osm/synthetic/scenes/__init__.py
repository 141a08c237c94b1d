"""Drawn scenes: images with panoptic masks and names, generated from a seed as datasets in COCO-panoptic form."""
