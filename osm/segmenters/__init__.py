"""Where masks come from when nobody brings them: SAM, or what the tower itself sees."""

from osm.segmenters.base import Segment, Segmenter, by_area

__all__ = ["Segment", "Segmenter", "by_area"]
