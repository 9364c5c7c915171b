"""The builtin default: a seeker, a critic and a bank of scenarios that need no model. See docs/simulator.md."""
