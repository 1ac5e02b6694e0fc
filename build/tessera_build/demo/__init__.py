"""The demo model: its world of scenes, its training, and the checker that scores its pictures."""
