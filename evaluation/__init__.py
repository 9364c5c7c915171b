"""PLACEHOLDER"""

if __name__ != "esc_env.evaluation":
    raise ImportError(f"import this package as esc_env.evaluation, not as {__name__}")
