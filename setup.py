"""The packages of the project; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["osm", "osm.*"]), "osm.configs"],
    package_dir={"osm": "osm", "osm.configs": "configs"},
    package_data={
        "osm": ["weights/**", "py.typed"],
        "osm.datasets": ["labels/*"],
        "osm.models": ["known_models.json"],
        "osm.serving": ["page_files/*"],
        "osm.labeling": ["photos/*", "review_page/*"],
        "osm.evaluation.report": ["templates/*"],
        "osm.configs": ["*.yaml"],
    },
)
