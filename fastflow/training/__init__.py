"""Training: one loop, one loss, one predictor for every system that gives `class_scores`."""
