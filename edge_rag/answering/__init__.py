"""retrieve -> select -> decide -> prompt -> generate -> cite."""
