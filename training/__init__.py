"""Training stages. Nothing here yet."""

if __name__ != "esc_env.training":
    raise ImportError(f"import this package as esc_env.training, not as {__name__}")
