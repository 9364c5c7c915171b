"""PLACEHOLDER"""

if __name__ != "esc_env.agents":
    raise ImportError(f"import this package as esc_env.agents, not as {__name__}")
