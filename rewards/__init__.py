"""Rewards for training. Nothing here yet: they come with the training stages."""

if __name__ != "esc_env.rewards":
    raise ImportError(f"import this package as esc_env.rewards, not as {__name__}")
