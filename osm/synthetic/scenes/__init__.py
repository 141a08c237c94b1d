"""Drawn scenes: images with panoptic masks and names, in COCO-panoptic form, made from a seed."""
