"""Measures the forms in which a model can be deployed, side by side on this machine."""

from platon_prune.deploy.measure import deploy_report as deploy_report
