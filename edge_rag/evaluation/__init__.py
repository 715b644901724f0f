"""Measure retrieval, answers, abstention and speed."""
