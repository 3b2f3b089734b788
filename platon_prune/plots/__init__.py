"""Figures; matplotlib is imported when one is drawn, and no window or global setting is touched."""

from platon_prune.plots.curves import accuracy_against_density as accuracy_against_density
from platon_prune.plots.demo import Comparison as Comparison
from platon_prune.plots.demo import save_demo_report as save_demo_report
from platon_prune.plots.distribution import scores as scores
from platon_prune.plots.runs import layers as layers
from platon_prune.plots.runs import regrowth as regrowth
from platon_prune.plots.runs import schedule as schedule
