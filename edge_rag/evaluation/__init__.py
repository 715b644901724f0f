"""Measure answers: question sets, arms that differ in one thing, scores, runs, comparisons and reports.

bench/ holds the other measurements: speed beside peers, and the fitting of the rules that ship.
"""
