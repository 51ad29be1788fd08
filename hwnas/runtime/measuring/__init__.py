"""Measures what a plan asks for: plan and journal, visits and their statistic, the process that is watched."""
