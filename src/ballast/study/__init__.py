"""A study: many methods, prompt sets, models and seeds, their regions compared, made in pieces that can be lost."""

from ballast.study.engines.base import Engine
from ballast.study.engines.local import LocalEngine
from ballast.study.engines.ray import RayEngine
from ballast.study.grid import StudyGrid
from ballast.study.study import study

__all__ = ["Engine", "LocalEngine", "RayEngine", "StudyGrid", "study"]
