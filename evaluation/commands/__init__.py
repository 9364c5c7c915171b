"""What is typed: `esc eval`, `leaderboard`, `compare`, `judge`, `validate`, `robustness`, … Decides nothing."""
